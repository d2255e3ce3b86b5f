"""Readers of the file formats in which digits are published: idx, MATLAB, torch and folders of images.

Each returns images (N, C, H, W) uint8 and labels (N,) int64, and refuses a damaged file with one line that names it.
"""

import gzip
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from common import torch_files
from common.errors import UserError
from common.reading import MOST_AT_ONCE, ordinary, read_bytes, read_text

Labelled = tuple[Tensor, Tensor]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
_IDX_UINT8 = 0x08


def read_idx(images: Path, labels: Path) -> Labelled:
    """A pair of MNIST's idx files, plain or .gz: (N, 1, H, W) images and their labels.

    Raises:
        UserError: a file is cut short or no idx file, or the two hold different counts.
    """
    pixels, classes = _read_idx(images, 3), _read_idx(labels, 1)
    return _paired(torch.from_numpy(pixels).unsqueeze(1), torch.from_numpy(classes), images, labels)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        content = read_bytes(path, "an idx file")
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                content = file.read(MOST_AT_ONCE)  # however much it would unpack to
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"it cannot be read ({_reason(error)})") from None
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, _IDX_UINT8, dimensions)) or len(content) < start:
        raise _damaged(path, f"expected an idx file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    size = int(np.prod(shape))
    if len(content) != start + size:
        raise _damaged(path, f"it announces {'x'.join(map(str, shape))} bytes and holds {len(content) - start}")
    return np.frombuffer(content, np.uint8, size, offset=start).reshape(shape).copy()


def read_mat(path: Path) -> Labelled:
    """SVHN's form, a MATLAB file with X (H, W, 3, N) and y (N, 1) in which 10 stands for the digit 0.

    Raises:
        UserError: the file is damaged or holds other variables, or fewer labels than images.
    """
    ordinary(path, "a MATLAB file", MOST_AT_ONCE)
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # a damaged MATLAB file fails in whatever way its bytes say
        raise _damaged(path, f"it cannot be read ({_reason(error)})") from None
    pixels, classes = content.get("X"), content.get("y")
    if not isinstance(pixels, np.ndarray) or not isinstance(classes, np.ndarray):
        raise _damaged(path, "expected the variables X and y")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2] != 3:
        raise _damaged(path, f"expected X as uint8 (H, W, 3, N), found {pixels.dtype} {pixels.shape}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    labels = torch.from_numpy(classes.ravel().astype(np.int64))
    return _paired(images, labels.masked_fill(labels == 10, 0), path)


def read_torch(path: Path) -> Labelled:
    """MNIST-M's form, a torch file of (images (N, H, W, 3) uint8, labels (N,)).

    Raises:
        UserError: the file is damaged or holds something else, or fewer labels than images.
    """
    try:
        content = torch_files.read(path, "a pair of tensors, images and labels")
    except UserError as error:
        raise _damaged(path, str(error).removeprefix(f"{path}: ").split(";")[0]) from None
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(map(torch_files.is_plain, content)):
        raise _damaged(path, "expected a pair of tensors, images and labels")
    images, labels = content
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise _damaged(path, f"expected images as uint8 (N, H, W, 3), found {images.dtype} {tuple(images.shape)}")
    return _paired(images.permute(0, 3, 1, 2).contiguous(), labels, path)


def read_listed_images(folder: Path, listing: Path, size: int) -> Labelled:
    """Ganin's form of MNIST-M: images in `folder`, and a text file with a line "name label" for each.

    Raises:
        UserError: an image without a label, a label without an image, or an image that cannot be read.
    """
    try:
        text = read_text(listing, 'lines "name.png label"')
        lines = [line.split() for line in text.splitlines() if line.strip()]
        label_of = {name: int(label) for name, label in lines}
    except ValueError as error:
        raise _damaged(listing, f'expected lines "name.png label" ({_reason(error)})') from None
    files = _image_files(folder)
    unlabelled = [path.name for path in files if path.name not in label_of]
    if unlabelled:
        raise _damaged(listing, f"it has no label for {len(unlabelled)} images of {folder}, such as {unlabelled[0]}")
    absent = sorted(set(label_of) - {path.name for path in files})
    if absent:
        raise _damaged(folder, f"{len(absent)} images of {listing.name} are missing, such as {absent[0]}")
    return _paired(_decode(files, size), torch.tensor([label_of[path.name] for path in files]), folder, listing)


def read_class_folders(folder: Path, classes: Sequence[str], size: int) -> Labelled:
    """Images in one folder per class, each brought to `size` x `size`.

    Raises:
        UserError: a class without a folder or without images, or an image that cannot be read.
    """
    missing = [name for name in classes if not (folder / name).is_dir()]
    if missing:
        raise UserError(
            f"{folder} has no folder for class {', '.join(missing)}; expected the {len(classes)} folders "
            f"{classes[0]} to {classes[-1]}: unpack the data again"
        )
    files = [_image_files(folder / name) for name in classes]
    labels = [label for label, paths in enumerate(files) for _ in paths]
    return _decode([path for paths in files for path in paths], size), torch.tensor(labels)


def _image_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.name[0] != ".")
    if not files:
        raise UserError(f"{folder} holds no images; expected {', '.join(_SUFFIXES)} files: unpack the data again")
    return files


def _decode(files: Iterable[Path], size: int) -> Tensor:
    """(N, 3, size, size) uint8: the images in order."""

    def decode(path: Path) -> np.ndarray:
        try:
            with Image.open(ordinary(path, "a complete image")) as image:
                return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
        except UserError:
            raise
        except Exception as error:  # a damaged image fails in whatever way its bytes say
            raise _damaged(path, f"it cannot be read as an image ({_reason(error)})") from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(decode, files)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _paired(images: Tensor, labels: Tensor, path: Path, labels_path: Path | None = None) -> Labelled:
    labels_path = labels_path or path
    if labels.ndim != 1 or len(labels) != len(images):
        raise _damaged(labels_path, f"expected a label for each of the {len(images)} images, found {labels.numel()}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise _damaged(labels_path, f"expected labels from 0 to 9, found {int(labels.min())} to {int(labels.max())}")
    return images, labels.long()


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}; delete it and fetch it again")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
