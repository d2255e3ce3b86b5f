"""Test images that no longer look like the training data: noise, blur, contrast, brightness, each at three strengths.

The idea is that of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261): accuracy under common corruptions that a
network never trained on. The formulas and strengths are this project's own, written below, so a number obtained with
them compares with no published one.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.images import ImageSet

STRENGTHS: dict[str, tuple[float, float, float]] = {
    "noise": (0.05, 0.10, 0.15),  # standard deviation, of a pixel range of 1
    "blur": (0.7, 1.1, 1.5),  # standard deviation of the Gaussian, in pixels
    "contrast": (0.6, 0.45, 0.3),  # factor on the distance from the image's mean
    "brightness": (0.1, 0.2, 0.3),  # added to every pixel, of a range of 1
}
_CHUNK = 1024  # images turned to float at a time


def noise(images: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """clip(x + std n), n standard normal and independent in every pixel and channel; (N, C, H, W) in [0, 1]."""
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    return (images + std * drawn).clamp(0, 1)


def blur(images: Tensor, std: float) -> Tensor:
    """Each channel convolved with a Gaussian exp(-(i^2 + j^2) / 2 std^2), cut off at 3 std and normalised to sum 1.

    Pixels beyond the border are mirrored without repeating the edge; (N, C, H, W) in [0, 1].

    Raises:
        ValueError: the image is not larger than the radius ceil(3 std).
    """
    radius = math.ceil(3 * std)
    if min(images.shape[-2:]) <= radius:
        raise ValueError(f"a blur of radius {radius} needs larger images than {tuple(images.shape[-2:])}")
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-offsets.square() / (2 * std**2))
    kernel = kernel / kernel.sum()
    count, channels, height, _ = images.shape
    planes = F.pad(images, [radius] * 4, mode="reflect").reshape(count * channels, 1, height + 2 * radius, -1)
    planes = F.conv2d(F.conv2d(planes, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1))
    return planes.reshape(images.shape).clamp(0, 1)  # a sum of weights that add up to 1, but for the last bit


def contrast(images: Tensor, factor: float) -> Tensor:
    """m + factor (x - m), m the mean of the image over its channels and pixels; (N, C, H, W), 0 <= factor <= 1."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (images - mean)


def brightness(images: Tensor, shift: float) -> Tensor:
    """clip(x + shift); (N, C, H, W) in [0, 1]."""
    return (images + shift).clamp(0, 1)


def corrupt(image_set: ImageSet, kind: str, level: int, seed: int = 0) -> ImageSet:
    """The set with every image corrupted, rounded back to bytes.

    A pure function of its arguments: the noise comes from a generator of its own, seeded by ``seed``, so all networks
    that are compared see the same pixels, and all levels the same pattern.

    Args:
        kind: one of ``STRENGTHS``.
        level: 1, 2 or 3; the strength is ``STRENGTHS[kind][level - 1]``.
    Raises:
        ValueError: another kind or level.
    """
    if kind not in STRENGTHS or level not in (1, 2, 3):
        raise ValueError(f"expected one of {', '.join(STRENGTHS)} at level 1, 2 or 3, not {kind} {level}")
    strength = STRENGTHS[kind][level - 1]
    generator = torch.Generator().manual_seed(seed)
    apply: dict[str, Callable[[Tensor], Tensor]] = {
        "noise": lambda x: noise(x, strength, generator),
        "blur": lambda x: blur(x, strength),
        "contrast": lambda x: contrast(x, strength),
        "brightness": lambda x: brightness(x, strength),
    }
    parts = [
        apply[kind](part.float() / 255).mul(255).round().to(torch.uint8) for part in image_set.images.split(_CHUNK)
    ]
    return replace(image_set, images=torch.cat(parts), name=f"{image_set.name}, {kind} {level}")
