"""Stand-ins for MNIST, MNIST-M, SVHN and SynDigits, each in the files of the set it stands for.

MNIST and MNIST-M share scikit-learn's handwritten digits: each trains on one half of the training digits, and both are
tested on digits that neither trains on. SVHN and SynDigits are printed numerals.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

from common.data.demo.folder import build_once
from common.data.demo.glyphs import house_number, synthetic_digit
from common.data.demo.sources import blend, digits, photograph_crop, place
from common.data.digits import CLASSES, TITLES, resolve

TRAIN_IMAGES, TEST_IMAGES = 720, 1080
_SIZE = 28  # of MNIST and MNIST-M
# Contrast of the strokes' edges: MNIST's strokes are almost black or white, an enlarged 8 x 8 digit's are not. Sharp
# strokes also make the step to MNIST-M wide enough for adaptation to show.
_SHARPNESS = 3

_CONTENT = {
    "mnist": "handwritten digits of scikit-learn, enlarged and sharpened, white on black",
    "mnistm": "handwritten digits of scikit-learn, sharpened, blended into its photographs, |photograph - digit|",
    "svhn": "numerals of the DejaVu fonts on plates, between other numerals",
    "syndigit": "turned numerals of the DejaVu fonts on faded photographs",
}


def write(root: Path | str, name: str) -> Path:
    """Make the demo set `name` in `root`/`name` unless it is there.

    Args:
        root: the folder of the demo data.
        name: mnist, mnistm, svhn or syndigit.
    Returns:
        `root`/`name`; `common.data.digits.load` reads it given either folder.
    Raises:
        UserError: an unknown name, or a folder that holds other data or cannot be written.
    """
    name = resolve(name)
    about = (
        f"DEMO DATA, version 1. This is not {TITLES[name]}.\n"
        f"{TRAIN_IMAGES} training and {TEST_IMAGES} test images in the files of {TITLES[name]}, made by this program:\n"
        f"{_CONTENT[name]}.\nNo accuracy on them compares with {TITLES[name]}.\n"
    )
    return build_once(Path(root) / name, about, _WRITERS[name])


def _write_mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for side, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = _handwritten("first", side, seed=11, draw=lambda rng, ink, held_out: 255 * ink)
        _write_idx(raw / f"{prefix}-images-idx3-ubyte", images.round().astype(np.uint8))
        _write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))


def _write_mnistm(folder: Path) -> None:
    processed = folder / "MNISTM" / "processed"
    processed.mkdir(parents=True)

    def draw(rng: np.random.Generator, ink: np.ndarray, held_out: bool) -> np.ndarray:
        return blend(photograph_crop(rng, _SIZE, held_out), ink)

    for side in ("train", "test"):
        images, labels = _handwritten("second", side, seed=13, draw=draw)
        torch.save((torch.from_numpy(images), torch.from_numpy(labels)), processed / f"mnist_m_{side}.pt")


def _write_svhn(folder: Path) -> None:
    for side in ("train", "test"):
        images, labels = _printed(side, seed=15, draw=lambda rng, digit, held_out: house_number(rng, digit))
        labels = np.where(labels == 0, 10, labels).astype(np.uint8)
        scipy.io.savemat(folder / f"{side}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})


def _write_syndigit(folder: Path) -> None:
    for side, name in (("train", "imgs_train"), ("test", "imgs_valid")):
        images, labels = _printed(side, seed=17, draw=synthetic_digit)
        for label in CLASSES:
            (folder / name / label).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / name / CLASSES[label] / f"{index:04d}.png")


_WRITERS: dict[str, Callable[[Path], None]] = {
    "mnist": _write_mnist,
    "mnistm": _write_mnistm,
    "svhn": _write_svhn,
    "syndigit": _write_syndigit,
}


def _handwritten(
    half: str, side: str, seed: int, draw: Callable[[np.random.Generator, np.ndarray, bool], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Digits of one half of the training digits, or of the test digits, each about the middle of its picture."""
    held_out = side == "test"
    rng = np.random.default_rng((seed, held_out))
    inks, labels = digits("test" if held_out else half)
    order = np.resize(rng.permutation(len(labels)), TEST_IMAGES if held_out else TRAIN_IMAGES)
    images = []
    for index in order:
        size = int(rng.integers(19, 23))
        top, left = ((_SIZE - size) // 2 + rng.integers(-2, 3, size=2)).tolist()
        ink = place(inks[index], _SIZE, size, top, left)
        ink = (_SHARPNESS * (ink - 0.5) + 0.5).clip(0, 1)
        images.append(draw(rng, ink, held_out))
    return np.stack(images), labels[order]


def _printed(
    side: str, seed: int, draw: Callable[[np.random.Generator, int, bool], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Numerals, every class equally often, in random order."""
    held_out = side == "test"
    rng = np.random.default_rng((seed, held_out))
    labels = rng.permutation(np.arange(TEST_IMAGES if held_out else TRAIN_IMAGES) % len(CLASSES))
    return np.stack([draw(rng, int(label), held_out) for label in labels]), labels


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(header + values.tobytes())
