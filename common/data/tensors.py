"""Batches of small image sets, which are held whole as bytes.

CIFAR-10 and the digits fit in memory many times over, so a batch is one vectorised gather: no worker processes, and an
order and an augmentation that depend on nothing but (seed, epoch, domain).
"""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.images import ImageSet, drawn, resized
from common.data.seeding import generator
from common.data.sharding import Share, batch_count
from common.errors import UserError

_PADDING = 4  # of the random crop, on every side


class TensorBatches:
    """Batches of an `ImageSet` that lives on `device` as bytes.

    Iterating yields (images, labels): (B, C, H, W) float32, (pixel / 255 - mean) / std, and (B,) int64. The order of
    the samples and the augmentation are a pure function of (seed, epoch, cycle, domain), the same on every device; they
    neither read nor advance the global random state.

    Args:
        image_set: the images.
        batch_size: B, of all processes together; the last batch may be smaller unless `drop_last`.
        mean, std: per channel, or one number for all channels, for pixels in [0, 1].
        seed, domain: which order; two domains of one run draw independently.
        shuffle: a new order every epoch; otherwise the order of the set.
        augment: None, or "crop_flip": each image by itself is padded with 4 black pixels, cropped back to its size at
            a random place and mirrored with probability 1/2, as RandomCrop(padding=4) and RandomHorizontalFlip do.
        size: side that the images are resized to, behind the augmentation; None: as they are.
        drop_last: leave out the last batch if it is not full.
        device: where the bytes are kept and the batches are made.
        share: this process's part of every batch, which is all that iterating yields.
    Raises:
        ValueError: an unknown `augment`, or a batch size below 1.
        UserError: the set is empty, or `drop_last` would leave no batch at all.
    """

    def __init__(
        self,
        *,
        image_set: ImageSet,
        batch_size: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        seed: int = 0,
        domain: str = "source",
        shuffle: bool = False,
        augment: str | None = None,
        size: int | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        share: Share = Share(),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, not {batch_size}")
        if augment not in (None, "crop_flip"):
            raise ValueError(f'augment must be None or "crop_flip", not {augment!r}')
        if not len(image_set):
            raise UserError(f"{image_set.name} holds no images; expected at least one")
        if drop_last and len(image_set) < batch_size:
            raise UserError(
                f"a batch of {batch_size} is larger than the {len(image_set)} images of {image_set.name}, so there is "
                f"nothing to train on; type --train_batch_size {len(image_set)} or less"
            )
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.domain = domain
        self.shuffle = shuffle
        self.augment = augment
        self.size = size
        self.drop_last = drop_last
        self.share = share
        self.device = torch.device(device)
        self.epoch, self.cycle = 0, 0
        self._images = image_set.images.to(self.device)
        self._labels = image_set.labels.to(self.device)
        self._mean = torch.as_tensor(mean, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)
        self._std = torch.as_tensor(std, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)

    @property
    def labels(self) -> Tensor:
        """Of all images, in the order of the set, (N,) int64."""
        return self.image_set.labels

    def of(self, image_set: ImageSet) -> "TensorBatches":
        """Batches of other images, drawn and normalised as these."""
        other = copy.copy(self)
        other.image_set = image_set
        other._images, other._labels = image_set.images.to(self.device), image_set.labels.to(self.device)
        return other

    def held(self, places: Tensor | Sequence[int] | None = None) -> "TensorBatches":
        """The images at `places`, or all: they are in memory anyway."""
        return self if places is None else self.of(self.image_set.subset(places))

    @property
    def samples(self) -> int:
        """How many images the set has."""
        return len(self.image_set)

    def whole(self) -> "TensorBatches":
        """The same batches as a single process has them."""
        other = copy.copy(self)
        other.share = Share()
        return other

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Some of the images, or all, as an evaluation has them: (n, C, H, W) float32. No label is read."""
        return self._normalised(self._images[drawn(count, len(self.image_set), seed).to(self.device)])

    def _normalised(self, images: Tensor) -> Tensor:
        if self.size not in (None, images.shape[-1]):
            images = resized(images, self.size)
        return images.float().div_(255).sub_(self._mean).div_(self._std)

    def set_epoch(self, epoch: int, cycle: int = 0) -> None:
        """Choose the order and the augmentation of the next iteration.

        Args:
            cycle: which pass over the set within the epoch, for one that is shorter than its partner.
        """
        self.epoch, self.cycle = epoch, cycle

    def __len__(self) -> int:
        return batch_count(len(self.image_set), self.batch_size, self.drop_last, self.share)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.image_set)
        draws = generator("batches", self.seed, self.epoch, self.cycle, self.domain)
        order = torch.randperm(count, generator=draws) if self.shuffle else torch.arange(count)
        # one row per position: where the crop starts (down, across), and whether it is mirrored
        crops = torch.randint(2 * _PADDING + 1, (count, 2), generator=draws).to(self.device)
        mirrored = torch.rand(count, generator=draws).lt(0.5).to(self.device)
        order = order.to(self.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            positions = self.share.of(start, min(start + self.batch_size, count))
            images = self._images[order[positions]]
            if self.augment == "crop_flip":
                images = _crop_flip(images, crops[positions], mirrored[positions])
            yield self._normalised(images), self._labels[order[positions]]


def _crop_flip(images: Tensor, crops: Tensor, mirrored: Tensor) -> Tensor:
    """Crop image b of the padded (B, C, H, W) bytes at crops[b] = (down, across); mirror it where mirrored[b]."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [_PADDING] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 9, 9, H, W), a view
    batch = torch.arange(len(images), device=images.device)
    cropped = windows[batch, :, crops[:, 0], crops[:, 1]]
    return torch.where(mirrored[:, None, None, None], cropped.flip(-1), cropped)
