"""The parts of torchvision that this project takes; ``import common`` has seen to its operators."""

from torchvision import datasets, models, transforms

__all__ = ["datasets", "models", "transforms"]
