"""The parts of torchvision that this project takes; ``import common`` has made it importable."""

from torchvision import datasets, models, transforms

__all__ = ["datasets", "models", "transforms"]
