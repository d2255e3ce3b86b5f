"""Labelled images of one size, held whole as bytes, and what is drawn and made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.seeding import generator


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size.

    Args:
        images: (N, C, H, W) uint8 tensor.
        labels: (N,) int64 tensor of class indices, each in [0, len(classes)).
        classes: the class names, in the order of the indices.
        name: what messages and logs call the set, e.g. "cifar10 train".
    Raises:
        ValueError: a dtype, a shape or a label is not as above.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"{self.name}: images must be (N, C, H, W) uint8, not {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"{self.name}: labels must be ({len(self.images)},) int64, not {self.labels.shape}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(f"{self.name}: a label lies outside the {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, images=self.images[index], labels=self.labels[index])

    def split(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """Hold out `fraction` of every class, drawn by `seed`; both parts keep the order of the set.

        Of a class with two images or more at least one lands on each side; a single image is not held out.

        Returns:
            (rest, held_out)
        Raises:
            ValueError: `fraction` is not strictly between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the held-out fraction must lie between 0 and 1, not {fraction}")
        held_out = of_every_class(self.labels, fraction, seed)
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[held_out] = False
        return self.subset(rest.nonzero().flatten()), self.subset(held_out)


def drawn(count: int, of: int, seed: int = 0) -> Tensor:
    """``count`` places among ``of``, or all of them, ascending: a function of the numbers alone, (n,) int64."""
    return torch.randperm(of, generator=generator("sample", seed))[:count].sort().values


def of_every_class(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """The places of `fraction` of every class, drawn by `seed`, ascending, (n,) int64.

    Of a class with two images or more at least one is in and one is out; a single image is out.
    """
    draws = generator("split", seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for index in range(int(labels.max()) + 1 if len(labels) else 0):
        members = (labels == index).nonzero().flatten()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        if count > 0:
            chosen[members[torch.randperm(len(members), generator=draws)[:count]]] = True
    return chosen.nonzero().flatten()


def resize(image_set: ImageSet, size: int) -> ImageSet:
    """The set with every image `size` x `size`: bilinear, with antialiasing where it shrinks, as PIL resizes."""
    if image_set.images.shape[-2:] == (size, size):
        return image_set
    parts = [resized(part, size) for part in image_set.images.split(4096)]
    return replace(image_set, images=torch.cat(parts))


def resized(images: Tensor, size: int) -> Tensor:
    """As ``resize``, of (N, C, H, W) bytes."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def to_three_channels(image_set: ImageSet) -> ImageSet:
    """The set with its one grey channel repeated as red, green and blue; a colour set is returned as it is.

    Raises:
        ValueError: the set has neither one channel nor three.
    """
    channels = image_set.images.shape[1]
    if channels == 3:
        return image_set
    if channels != 1:
        raise ValueError(f"{image_set.name}: expected one channel or three, not {channels}")
    return replace(image_set, images=image_set.images.expand(-1, 3, -1, -1))
