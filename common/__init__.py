"""The shared core of every task: quantizers, relation preservation, adaptation, models, data, engine."""
