"""Domains kept as folders of images, `domain/class/*.jpg`: Office-31, Office-Home and any other pair.

    images = read_domain("data/office31", "amazon")
    domain = partition(images, train_split=True, folder=job_dir)
    batches = FolderBatches(image_list=domain.train, batch_size=28, train=True)

Nothing depends on the order in which a file system lists its files. No image is ever copied: a split is a text file.
"""

import contextlib
import hashlib
import math
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.data.demo.folder import is_demo
from common.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CACHE_BYTES = 1_000_000_000  # a decoded list up to this size is kept in memory
WHOLE_DOMAIN = "whole domain for training and test"

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class ImageList:
    """The images of a domain, or a part of them.

    Args:
        root: the folder that the class folders are in.
        paths: relative to `root`, "class/name.jpg" with forward slashes, in sorted order.
        labels: the class index of each path, in [0, len(classes)).
        classes: the class names, sorted.
        domain: the name of the domain, for messages and logs.
        demo: whether a demo generator made the images; a result on them must say so.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    domain: str
    demo: bool = False
    _decoded: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> "ImageList":
        """The images at `indices`, in that order."""
        paths = tuple(self.paths[i] for i in indices)
        return replace(self, paths=paths, labels=tuple(self.labels[i] for i in indices))

    def image(self, index: int, side: int) -> Tensor:
        """Image `index` as a (side, side, 3) uint8 tensor, whatever its shape and colour mode.

        Raises:
            UserError: the file is not an image, or is cut short.
        """
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                resized = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot read the image {path} ({reason}); expected a complete JPEG or PNG: unpack the data again, or "
                "remove this file"
            ) from None
        return torch.from_numpy(np.array(resized))

    def decoded(self, side: int) -> Tensor:
        """All images as one (N, side, side, 3) uint8 tensor, decoded on first use and kept.

        Raises:
            UserError: a file cannot be read.
        """
        if side not in self._decoded:
            images = np.empty((len(self), side, side, 3), dtype=np.uint8)

            def decode(index: int) -> None:
                images[index] = self.image(index, side).numpy()

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for _ in pool.map(decode, range(len(self))):
                    pass
            self._decoded[side] = torch.from_numpy(images)
        return self._decoded[side]


def read_domain(root: Path | str, domain: str) -> ImageList:
    """List the images of `root/domain/images/<class>/` or, without that level, of `root/domain/<class>/`.

    Hidden files and files whose suffix is not an image's are left out.

    Raises:
        UserError: no such domain, `root` one level too high or too low, fewer than two classes, or a class without
            images. Where a fitting folder is near, the message says which to give.
    """
    folder = find_class_folder(root, domain)
    classes = _subfolders(folder)
    files = {name: _images(folder / name) for name in classes}
    if not any(files.values()) and any(_subfolders(folder / name) for name in classes):
        raise UserError(
            f"{folder} holds folders of folders ({_some(classes)}) where class folders full of images were expected: "
            f"if these are the domains, give --data_dir {folder} and one of their names"
        )
    empty = [name for name in classes if not files[name]]
    if empty:
        raise UserError(
            f"no images in {_some(empty)} of {folder}; expected at least one in each of the {len(classes)} class "
            "folders: unpack the data again, or remove the empty folders from every domain"
        )
    if len(classes) == 1:
        raise UserError(
            f"only one class ({classes[0]}) in {folder}; expected one folder per class: give the --data_dir whose "
            f"{domain} folder holds them"
        )
    return ImageList(
        root=folder,
        paths=tuple(f"{name}/{file}" for name in classes for file in files[name]),
        labels=tuple(label for label, name in enumerate(classes) for _ in files[name]),
        classes=tuple(classes),
        domain=domain,
        demo=any(is_demo(path) for path in (folder, *folder.parents[:2])),
    )


def find_class_folder(root: Path | str, domain: str) -> Path:
    """The folder whose subfolders are the classes of `domain`: `root/domain/images` or `root/domain`.

    Raises:
        UserError: there is none; see `wrong_level` for what the message can say.
    """
    root = Path(root)
    for folder in (root / domain / "images", root / domain):
        if _subfolders(folder):
            return folder
    hint = wrong_level(root, domain)
    if hint:
        raise UserError(hint)
    if not root.is_dir():
        raise UserError(f"no folder {root}; expected the folder that holds {domain}: give it as --data_dir")
    if (root / domain).is_dir():
        raise UserError(f"{root / domain} holds no class folders; expected {root / domain}/<class>/*.jpg")
    raise UserError(
        f"no domain {domain} in {root}, which holds {_some(_subfolders(root)) or 'no folders'}; expected "
        f"{root / domain}/<class>/*.jpg: give the --data_dir that holds {domain}, or one of these names"
    )


def wrong_level(root: Path, domain: str) -> str | None:
    """What to say where a folder above `root`, or one just below, holds the domain; None if there is no such folder."""
    for path in Path(os.path.abspath(root)).parents[:2]:
        if _subfolders(path / domain):
            return f"no domain {domain} in {root}, but one in a folder above: give --data_dir {path}"
    for name in _subfolders(root):
        if _subfolders(root / name / domain):
            return f"no domain {domain} in {root}, but one in the folder below: give --data_dir {root / name}"
    return None


def check_same_classes(source: ImageList, target: ImageList) -> None:
    """Source and target must be about the same classes.

    Raises:
        UserError: they are not; it names the classes that only one of them has.
    """
    only_source = sorted(set(source.classes) - set(target.classes))
    only_target = sorted(set(target.classes) - set(source.classes))
    if only_source or only_target:
        raise UserError(
            f"{source.domain} and {target.domain} have different classes (only in {source.domain}: "
            f"{_some(only_source) or 'none'}; only in {target.domain}: {_some(only_target) or 'none'}); expected the "
            "same class folders in both: rename or remove the others"
        )


# ---------------------------------------------------------------------------------------------------------------------
# training and test images


@dataclass(frozen=True, eq=False)
class Partition:
    """What a run trains on and what it is tested on.

    Args:
        train, test: disjoint under the split; one and the same list under the whole-domain protocol.
        protocol: what a result says about it, "80/20 split per class, seed 1" or `WHOLE_DOMAIN`.
        list_file: where the split is written down, if it is.
    """

    train: ImageList
    test: ImageList
    protocol: str
    list_file: Path | None = None


def partition(
    images: ImageList,
    *,
    train_split: bool = True,
    folder: Path | str | None = None,
    fraction: float = 0.8,
    seed: int = 1,
) -> Partition:
    """Divide a domain into training and test images, or use all of it as both.

    Of a class with n images int(fraction n) are for training, at least one and, where n >= 2, at most n - 1. Which ones
    follows from the file names and the seed alone: the order of the digests of "seed/class/name". So every
    run, method and file system has the same split. With `folder` (a run's job_dir) it is written down there as
    `split_<domain>.tsv`, one line per image, "train|test <tab> label <tab> path", and read from there afterwards; such
    a file written by hand is used as it is.

    Args:
        train_split: False gives the whole domain for training and for test, as the adaptation literature does.
    Raises:
        UserError: the list file does not fit the images in the folder or was made with another fraction or seed.
        ValueError: `fraction` is not strictly between 0 and 1.
    """
    if not train_split:
        return Partition(images, images, WHOLE_DOMAIN)
    if not 0 < fraction < 1:
        raise ValueError(f"the training fraction must lie between 0 and 1, not {fraction}")
    protocol = f"{100 * fraction:g}/{100 - 100 * fraction:g} split per class, seed {seed}"
    if folder is None:
        return _parts(images, _draw(images, fraction, seed), protocol, None)
    file = Path(folder) / f"split_{images.domain.replace('/', '_').replace(os.sep, '_')}.tsv"
    if not file.exists():
        training = _draw(images, fraction, seed)
        _write_split(file, images, training, protocol)
    else:
        training, protocol = _read_split(file, images, protocol)
    return _parts(images, training, protocol, file)


def _draw(images: ImageList, fraction: float, seed: int) -> set[str]:
    """The training paths."""
    members: dict[int, list[str]] = {}
    for path, label in zip(images.paths, images.labels, strict=True):
        members.setdefault(label, []).append(path)
    training: set[str] = set()
    for paths in members.values():
        count = max(1, min(int(fraction * len(paths)), len(paths) - 1))
        training.update(sorted(paths, key=lambda path: (_digest("split", seed, path), path))[:count])
    return training


def _parts(images: ImageList, training: set[str], protocol: str, file: Path | None) -> Partition:
    inside = [path in training for path in images.paths]
    return Partition(
        train=images.subset([i for i, chosen in enumerate(inside) if chosen]),
        test=images.subset([i for i, chosen in enumerate(inside) if not chosen]),
        protocol=protocol,
        list_file=file,
    )


def _write_split(file: Path, images: ImageList, training: set[str], protocol: str) -> None:
    lines = [f"# {protocol}"]
    for path, label in zip(images.paths, images.labels, strict=True):
        lines.append(f"{'train' if path in training else 'test'}\t{label}\t{path}")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); make room or give another --job_dir") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_split(file: Path, images: ImageList, protocol: str) -> tuple[set[str], str]:
    """The training paths and the protocol that a list file states."""
    redo = f"restore the images, or remove {file} for a new split"
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}): {redo}") from None
    stated = lines[0][1:].strip() if lines[0].startswith("#") else f"split of {file.name}"
    if lines[0].startswith("#") and stated != protocol:
        raise UserError(f"{file} holds the {stated}; expected the {protocol}: ask for the former, or remove the file")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    wrong = [row for row in rows if len(row) != 3 or row[0] not in ("train", "test")]
    if wrong:
        raise UserError(f"{file} has the line {wrong[0]}; expected train or test, a label and a path: {redo}")
    expected = dict(zip(images.paths, map(str, images.labels), strict=True))
    found = {path: label for _, label, path in rows}
    unlisted = sorted(path for path, _ in expected.items() - found.items())
    absent = sorted(path for path, _ in found.items() - expected.items())
    if unlisted or absent or len(rows) != len(expected):
        raise UserError(
            f"{file} lists {len(rows)} images where {images.root} holds {len(expected)} (only in the folder: "
            f"{_some(unlisted) or 'none'}; only in the list: {_some(absent) or 'none'}): {redo}"
        )
    return {path for part, _, path in rows if part == "train"}, stated


# ---------------------------------------------------------------------------------------------------------------------
# batches


class FolderBatches:
    """Batches of the images of a list.

    Iterating yields (images, labels) on `device`: (B, 3, S, S) float32, normalised with the mean and the standard
    deviation of ImageNet, and (B,) int64. An image is resized to a square of round(256/224 S) pixels whatever its
    shape; training crops S x S at a random place and mirrors with probability 1/2, in a new order every epoch; test
    crops the centre, in the order of the list.

    Order and augmentation are a pure function of (seed, epoch, cycle, domain, index): bit-identical for any number of
    workers and after a restart. The global random state is neither read nor advanced.

    Args:
        image_list: the images.
        batch_size: B; the last batch may be smaller unless `drop_last`.
        img_size: S.
        train: random order and augmentation, or neither.
        seed, domain: which order; two domains of one run draw independently.
        num_workers: processes that decode, crop and prefetch and live as long as this object; with any, end one
            iteration before the next.
        drop_last: leave out the last batch if it is not full.
        device: where the batches are wanted; for CUDA they pass through pinned memory as bytes.
        cache: keep the resized images in memory as bytes, decoded by threads before the first batch, so that an
            unreadable file shows then. None: do so if that takes at most `CACHE_BYTES`.
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
        seed: int = 0,
        domain: str = "source",
        num_workers: int = 0,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        cache: bool | None = None,
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
        self.device = torch.device(device)
        side = round(img_size * 256 / 224)
        self.cache = len(image_list) * side * side * 3 <= CACHE_BYTES if cache is None else cache
        self._crops = _Crops(image_list, side, img_size, train, (seed, domain), self.cache)
        self._order = _Order(len(image_list), train, (seed, domain))
        self._loader: DataLoader | None = None
        self._mean = torch.tensor(IMAGENET_MEAN, device=self.device).reshape(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=self.device).reshape(3, 1, 1)

    def set_epoch(self, epoch: int, cycle: int = 0) -> None:
        """Choose the order and the augmentation of the next iteration.

        Args:
            cycle: which pass over the list within the epoch, for a loader that is shorter than its partner.
        """
        self._order.pass_ = (epoch, cycle)

    def __len__(self) -> int:
        if self.drop_last:
            return len(self.image_list) // self.batch_size
        return math.ceil(len(self.image_list) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._loader is None:
            self._loader = self._make_loader()
        for batch in self._loader:
            if isinstance(batch, _Failure):
                raise UserError(batch.message)
            images, labels = (part.to(self.device, non_blocking=True) for part in batch)
            yield images.float().div_(255).sub_(self._mean).div_(self._std), labels

    def _make_loader(self) -> DataLoader:
        if self.cache:
            self.image_list.decoded(self._crops.side)  # here, once, and not in every worker
        return DataLoader(
            self._crops,
            self.batch_size,
            sampler=self._order,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            drop_last=self.drop_last,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),  # nothing reads it; the global one stays untouched
        )


_Key = tuple[int, int, int]  # epoch, cycle, index: a worker that outlives the epoch learns it from the sampler


@dataclass(frozen=True)
class _Failure:
    """A UserError on its way from a worker process; raised there it would come out as a traceback."""

    message: str


class _Order(Sampler[_Key]):
    def __init__(self, count: int, shuffle: bool, key: tuple[int, str]) -> None:
        self.count = count
        self.shuffle = shuffle
        self.key = key
        self.pass_ = (0, 0)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[_Key]:
        epoch, cycle = self.pass_
        indices = torch.arange(self.count)
        if self.shuffle:
            indices = torch.randperm(self.count, generator=_generator("order", *self.key, epoch, cycle))
        return iter([(epoch, cycle, index) for index in indices.tolist()])


class _Crops(Dataset):
    """Image and label by key: ((S, S, 3) uint8, int), or a `_Failure`."""

    def __init__(
        self, images: ImageList, side: int, size: int, augment: bool, key: tuple[int, str], cache: bool
    ) -> None:
        self.images = images
        self.side = side
        self.size = size
        self.augment = augment
        self.key = key
        self.cache = cache

    def __getitem__(self, key: _Key) -> tuple[Tensor, int] | _Failure:
        epoch, cycle, index = key
        try:
            image = self.images.decoded(self.side)[index] if self.cache else self.images.image(index, self.side)
        except UserError as error:
            return _Failure(str(error))
        down = across = round((self.side - self.size) / 2)
        mirrored = False
        if self.augment:
            generator = _generator("augment", *self.key, epoch, cycle, index)
            down, across = torch.randint(self.side - self.size + 1, (2,), generator=generator).tolist()
            mirrored = bool(torch.rand((), generator=generator) < 0.5)
        image = image[down : down + self.size, across : across + self.size]
        return image.flip(1) if mirrored else image, self.images.labels[index]


def _collate(items: list[tuple[Tensor, int] | _Failure]) -> tuple[Tensor, Tensor] | _Failure:
    """(B, 3, S, S) uint8 and (B,) int64; bytes, because they cross from process to process and to the device."""
    images, labels = [], []
    for item in items:
        if isinstance(item, _Failure):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


# ---------------------------------------------------------------------------------------------------------------------


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror}); expected a folder that can be read") from None


def _subfolders(folder: Path) -> list[str]:
    """Sorted names of the folders in it; none if it is no folder."""
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir()) if os.path.isdir(folder) else []


def _images(folder: Path) -> list[str]:
    """Sorted names of the image files in it."""
    return sorted(e.name for e in _entries(folder) if e.suffix.lower() in IMAGE_SUFFIXES and e.is_file())


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _digest(*key: object) -> bytes:
    return hashlib.sha256("/".join(map(str, key)).encode(errors="surrogateescape")).digest()


def _generator(*key: object) -> torch.Generator:
    """A generator of its own for `key`, the same in every process and on every machine."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(*key)[:8], "big") >> 1)
