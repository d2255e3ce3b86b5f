"""Devices, processes, and how a training step is executed."""
