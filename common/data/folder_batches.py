"""Batches of the images of a domain, decoded by workers or kept in memory."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from common.data.crops import Crops, Failure, Key
from common.data.folders import ImageList
from common.data.images import ImageSet, drawn
from common.data.seeding import generator
from common.data.sharding import Share, batch_count
from common.data.tensors import TensorBatches
from common.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 1_000_000_000  # a decoded list up to this size is kept in memory


class FolderBatches:
    """Batches of the images of a list.

    Iterating yields (images, labels) on `device`: (B, 3, S, S) float32, normalised with the mean and the standard
    deviation of ImageNet, and (B,) int64. An image is resized to a square of round(256/224 S) pixels whatever its
    shape; training crops S x S at a random place and mirrors with probability 1/2, in a new order every epoch; test
    crops the centre, in the order of the list. With `augment` "pad_crop_flip" images are resized to S x S, and training
    pads them with 4 black pixels before it crops; with "resized_crop" training crops a rectangle of 8 to 100 % of the
    area, 3:4 to 4:3, and resizes that to S x S (Szegedy et al., CVPR 2015).

    Order and augmentation are a pure function of (seed, epoch, cycle, domain, index): bit-identical for any number of
    workers and after a restart. The global random state is neither read nor advanced.

    Args:
        image_list: the images.
        batch_size: B, of all processes together; the last batch may be smaller unless `drop_last`.
        img_size: S.
        train: random order and augmentation, or neither. augment: which, as above.
        seed, domain: which order; two domains of one run draw independently.
        num_workers: processes that decode, crop and prefetch and live as long as this object; with any, end one
            iteration before the next.
        drop_last: leave out the last batch if it is not full.
        device: where the batches are wanted; for CUDA they pass through pinned memory as bytes.
        cache: keep the resized images in memory as bytes, decoded by threads before the first batch, so that an
            unreadable file shows then. None: do so if that takes at most `CACHE_BYTES`. Every process has its own.
        share: this process's part of every batch, which is all that is decoded and yielded.
    Raises:
        UserError: an empty list, `drop_last` leaves no batch, or, while iterating, a file that cannot be read.
        ValueError: a size below 1.
    """

    def __init__(
        self,
        *,
        image_list: ImageList,
        batch_size: int,
        img_size: int = 224,
        train: bool,
        augment: str = "crop_flip",
        seed: int = 0,
        domain: str = "source",
        num_workers: int = 0,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        cache: bool | None = None,
        share: Share = Share(),
    ) -> None:
        if batch_size < 1 or img_size < 1:
            raise ValueError(f"the batch size and the image size must be at least 1, not {batch_size} and {img_size}")
        if not len(image_list):
            raise UserError(f"{image_list.domain} has no images to draw batches from; expected at least one")
        if drop_last and len(image_list) < batch_size:
            raise UserError(
                f"a batch of {batch_size} is larger than the {len(image_list)} images of {image_list.domain}, so there "
                f"is nothing to train on; type --train_batch_size {len(image_list)} or less"
            )
        self.image_list = image_list
        self.batch_size = batch_size
        self.img_size = img_size
        self.seed = seed
        self.domain = domain
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.share = share
        self.device = torch.device(device)
        side = img_size if augment == "pad_crop_flip" else round(img_size * 256 / 224)
        self.cache = len(image_list) * side * side * 3 <= CACHE_BYTES if cache is None else cache
        self._crops = Crops(image_list, side, img_size, augment if train else "", (seed, domain), self.cache)
        self._order = _Order(len(image_list), train, (seed, domain), batch_size, share)
        self._loader: DataLoader | None = None
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).reshape(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).reshape(3, 1, 1)

    @property
    def samples(self) -> int:
        """How many images the list has."""
        return len(self.image_list)

    def whole(self) -> "FolderBatches":
        """The same batches as a single process has them."""
        if self.share.size == 1:
            return self
        other = copy.copy(self)
        other.share, other._loader = Share(), None
        other._order = _Order(self.samples, self._order.shuffle, self._order.key, self.batch_size, other.share)
        return other

    @property
    def labels(self) -> Tensor:
        """Of all images, in the order of the list, (N,) int64."""
        return torch.tensor(self.image_list.labels)

    def held(self, places: Sequence[int] | Tensor | None = None) -> TensorBatches:
        """The images at `places`, or all, in memory, as an evaluation crops and normalises them."""
        images = self.image_list if places is None else self.image_list.subset(torch.as_tensor(places).tolist())
        crops = self._crops
        plain = Crops(images, crops.side, crops.size, "", crops.key, cache=False)
        pixels = torch.stack([plain.cropped(image, 0, 0, 0) for image in images.decoded(crops.side)])
        image_set = ImageSet(
            pixels.permute(0, 3, 1, 2).contiguous(), torch.tensor(images.labels), images.classes, images.domain
        )
        return TensorBatches(
            image_set=image_set,
            batch_size=self.batch_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            device=self.device,
        )

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Some of the images, or all, as an evaluation has them: (n, 3, S, S) float32. No label is read."""
        return self.held(drawn(count, len(self.image_list), seed)).sample(count)

    def set_epoch(self, epoch: int, cycle: int = 0) -> None:
        """Choose the order and the augmentation of the next iteration.

        Args:
            cycle: which pass over the list within the epoch, for a loader that is shorter than its partner.
        """
        self._order.pass_ = (epoch, cycle)

    def __len__(self) -> int:
        return batch_count(len(self.image_list), self.batch_size, self.drop_last, self.share)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._loader is None:
            self._loader = self._make_loader()
        for batch in self._loader:
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield images.float().div_(255).sub_(self._mean).div_(self._std), labels

    def _make_loader(self) -> DataLoader:
        if self.cache:
            self.image_list.decoded(self._crops.side)  # here, once, and not in every worker
        return DataLoader(
            self._crops,
            self.batch_size // self.share.size,
            sampler=self._order,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            drop_last=self.drop_last,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),  # nothing reads it; the global one stays untouched
        )


class _Order(Sampler[Key]):
    def __init__(self, count: int, shuffle: bool, key: tuple[int, str], batch_size: int, share: Share) -> None:
        self.shuffle = shuffle
        self.key = key
        self.pass_ = (0, 0)
        self.count = count
        starts = range(0, count, batch_size)
        self.positions = [share.of(start, min(start + batch_size, count)) for start in starts]

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.positions)

    def __iter__(self) -> Iterator[Key]:
        epoch, cycle = self.pass_
        indices = torch.arange(self.count)
        if self.shuffle:
            indices = torch.randperm(self.count, generator=generator("order", *self.key, epoch, cycle))
        return iter([(epoch, cycle, index) for part in self.positions for index in indices[part].tolist()])


def _collate(items: list[tuple[Tensor, int] | Failure]) -> tuple[Tensor, Tensor] | Failure:
    """(B, 3, S, S) uint8 and (B,) int64; bytes, because they cross from process to process and to the device."""
    images, labels = [], []
    for item in items:
        if isinstance(item, Failure):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)
