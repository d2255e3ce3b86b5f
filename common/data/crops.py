"""Images of a list, each cropped as training or evaluation takes it, by a key: what DataLoader's workers run."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from common.data.folders import ImageList
from common.data.seeding import generator
from common.errors import UserError

PADDING = 4  # of "pad_crop_flip", on every side

Key = tuple[int, int, int]  # epoch, cycle, index: a worker that outlives the epoch learns it from the sampler


@dataclass(frozen=True)
class Failure:
    """A UserError on its way from a worker process; raised there it would come out as a traceback."""

    message: str


class Crops(Dataset):
    """Image and label by key: ((S, S, 3) uint8, int), or a `Failure`."""

    def __init__(
        self, images: ImageList, side: int, size: int, augment: str, key: tuple[int, str], cache: bool
    ) -> None:
        self.images = images
        self.side = side
        self.size = size
        self.augment = augment
        self.key = key
        self.cache = cache

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Failure:
        epoch, cycle, index = key
        try:
            image = self.images.decoded(self.side)[index] if self.cache else self.images.image(index, self.side)
        except UserError as error:
            return Failure(str(error))
        return self.cropped(image, epoch, cycle, index), self.images.labels[index]

    def cropped(self, image: Tensor, epoch: int, cycle: int, index: int) -> Tensor:
        """(S, S, 3) of (side, side, 3): the centre, or what the augmentation draws."""
        if not self.augment:
            start = round((self.side - self.size) / 2)
            return image[start : start + self.size, start : start + self.size]
        draws = generator("augment", *self.key, epoch, cycle, index)
        if self.augment == "resized_crop":
            image = _resized_crop(image, self.size, draws)
        else:
            image = F.pad(image, (0, 0, *[PADDING] * 4)) if self.augment == "pad_crop_flip" else image
            down, across = torch.randint(len(image) - self.size + 1, (2,), generator=draws).tolist()
            image = image[down : down + self.size, across : across + self.size]
        return image.flip(1) if bool(torch.rand((), generator=draws) < 0.5) else image


def _resized_crop(image: Tensor, size: int, draws: torch.Generator) -> Tensor:
    """A rectangle of a (side, side, 3) image, with 8 to 100 % of its area, as (size, size, 3)."""
    side = len(image)
    area, ratio, down, across = torch.rand(4, generator=draws).tolist()
    kept = side * math.sqrt(0.08 + 0.92 * area)
    stretch = (4 / 3) ** (ratio - 0.5)  # height and width are this factor and its inverse from a square
    height, width = (max(1, min(side, round(one))) for one in (kept * stretch, kept / stretch))
    top, left = int(down * (side - height + 1)), int(across * (side - width + 1))
    part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
