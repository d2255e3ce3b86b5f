"""A run's folder, its checkpoints, and how a program ends."""
