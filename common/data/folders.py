"""Domains kept as folders of images, `domain/class/*.jpg`: Office-31, Office-Home and any other pair.

    images = read_domain("data/office31", "amazon")
    domain = partition(images, train_split=True, folder=job_dir)                # common.data.splits
    batches = FolderBatches(image_list=domain.train, batch_size=28, train=True)  # common.data.folder_batches

Nothing depends on the order in which a file system lists its files. No image is ever copied: a split is a text file.
"""

import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.demo.folder import is_demo
from common.errors import UserError
from common.reading import ordinary

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

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
        path = ordinary(self.root / self.paths[index], "a complete JPEG or PNG")
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
            f"{folder} holds folders of folders ({some_of(classes)}) where class folders full of images were expected: "
            f"if these are the domains, give --data_dir {folder} and one of their names"
        )
    empty = [name for name in classes if not files[name]]
    if empty:
        raise UserError(
            f"no images in {some_of(empty)} of {folder}; expected at least one in each of the {len(classes)} class "
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
        f"no domain {domain} in {root}, which holds {some_of(_subfolders(root)) or 'no folders'}; expected "
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
            f"{some_of(only_source) or 'none'}; only in {target.domain}: {some_of(only_target) or 'none'}); expected "
            "the same class folders in both: rename or remove the others"
        )


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


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are beyond them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
