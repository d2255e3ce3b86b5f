"""Training steps to measure, and how they are measured."""
