"""CIFAR-10-C in its published form: a NumPy file for each kind of corruption, and labels (Hendrycks and Dietterich,
ICLR 2019, arXiv 1903.12261).

Every file holds the 10,000 test images five times, at severity 1 first.
"""

from pathlib import Path

import numpy as np
import torch

from common.data import cifar10
from common.data.images import ImageSet
from common.errors import UserError
from common.reading import ordinary, reason

KINDS = (  # the fifteen that results are averaged over
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # for validation, as their authors have it
FOLDERS = ("cifar10c", "CIFAR-10-C")
SEVERITIES = 5
IMAGES = 10_000
_WHERE = "CIFAR-10-C.tar of https://zenodo.org/records/2535967"


def find(data_dir: Path) -> Path:
    """The folder of the files, below ``data_dir`` or itself, with a file for each of all kinds.

    Raises:
        UserError: it is not there, or a file is missing.
    """
    folder = next((path for name in FOLDERS if (path := data_dir / name).is_dir()), data_dir)
    missing = [name for name in ("labels", *KINDS, *EXTRA) if not (folder / f"{name}.npy").is_file()]
    if len(missing) == 1 + len(KINDS) + len(EXTRA):
        raise UserError(
            f"--shift cifar10c: no CIFAR-10-C in {data_dir}; expected {data_dir / FOLDERS[0]}/*.npy: unpack {_WHERE} "
            "there, or leave cifar10c out for the project's own corruptions"
        )
    if missing:
        raise UserError(f"--shift cifar10c: {folder / missing[0]}.npy is missing; unpack {_WHERE} again")
    return folder


def load(folder: Path, kind: str) -> list[ImageSet]:
    """The test images under one kind of corruption, at severities 1 to 5; in the order of CIFAR-10's.

    Raises:
        UserError: a file is not there, is no NumPy file, or of another type, shape or length than published.
    """
    count = SEVERITIES * IMAGES
    images = _read(folder / f"{kind}.npy", (count, cifar10.SIDE, cifar10.SIDE, 3))
    labels = _read(folder / "labels.npy", (count,))
    if labels.max() >= len(cifar10.CLASSES):
        raise UserError(f"{folder / 'labels.npy'}: class {labels.max()}; expected 0 to {len(cifar10.CLASSES) - 1}")
    sets = []
    for severity in range(SEVERITIES):
        part = slice(severity * IMAGES, (severity + 1) * IMAGES)
        pixels = torch.from_numpy(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)))
        classes = torch.from_numpy(labels[part].astype(np.int64))
        sets.append(ImageSet(pixels, classes, cifar10.CLASSES, f"CIFAR-10-C {kind} {severity + 1}"))
    return sets


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    expected = f"uint8 {shape}, as published in {_WHERE}"
    try:
        found = np.load(ordinary(path, expected), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"{path}: not a complete NumPy file ({reason(error)}); expected {expected}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.shape != shape:
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise UserError(f"{path}: {what}; expected {expected}")
    if found.dtype != np.uint8 and len(shape) > 1:
        raise UserError(f"{path}: {found.dtype} {found.shape}; expected {expected}")
    if len(shape) == 1 and found.min() < 0:
        raise UserError(f"{path}: a label below 0; expected {expected}")
    return found
