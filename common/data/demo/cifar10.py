"""A ten-class stand-in for CIFAR-10: handwritten digits blended into photographs, in CIFAR-10's own files."""

import pickle
import struct
from pathlib import Path

import numpy as np

from common.data.cifar10 import FOLDER, META, TEST_BATCH, TRAIN_BATCHES
from common.data.demo.folder import build_once
from common.data.demo.sources import blend, digits, photograph_crop, place

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN_IMAGES, TEST_IMAGES = 2000, 2000
SIZE = 32
_DIM = 0.6  # the photographs' brightness: at 1, grey places hide a digit and a network learns little in 15 epochs

ABOUT = f"""\
DEMO DATA, version 1. This is not CIFAR-10.
{TRAIN_IMAGES:,} training and {TEST_IMAGES:,} test images of ten classes in the files of CIFAR-10, made by this program:
handwritten digits of scikit-learn at a random place and size of a dimmed photograph of its own, |photograph - digit|.
The test images show other digits and other parts of the photographs. No accuracy on them compares with CIFAR-10.
"""


def write(root: Path | str) -> Path:
    """Make `root`/cifar-10-batches-py unless it is there.

    Returns:
        that folder, which `common.data.cifar10.load` and torchvision's reader read.
    Raises:
        UserError: the folder holds other data, or cannot be written.
    """
    return build_once(Path(root) / FOLDER, ABOUT, _fill)


def _fill(folder: Path) -> None:
    images, labels = _draw("train", TRAIN_IMAGES, seed=1)
    share = TRAIN_IMAGES // len(TRAIN_BATCHES)
    for index, name in enumerate(TRAIN_BATCHES):
        part = slice(index * share, (index + 1) * share)
        about = f"training batch {index + 1} of {len(TRAIN_BATCHES)}"
        _write_batch(folder / name, about, images[part], labels[part])
    _write_batch(folder / TEST_BATCH, "testing batch 1 of 1", *_draw("test", TEST_IMAGES, seed=2))
    meta = {"num_cases_per_batch": share, "label_names": list(CLASSES), "num_vis": 3 * SIZE * SIZE}
    (folder / META).write_bytes(python2_pickle(meta))


def _draw(part: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, 32, 32) uint8 images and (count,) labels; every digit of the part is shown before one is repeated."""
    rng = np.random.default_rng(seed)
    ink, labels = digits(part)
    rounds = [rng.permutation(len(labels)) for _ in range(-(-count // len(labels)))]
    order = np.concatenate(rounds)[:count]
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for index, digit in enumerate(order):
        size = int(rng.integers(22, 29))
        top, left = rng.integers(SIZE - size + 1, size=2).tolist()
        photograph = _DIM * photograph_crop(rng, SIZE, held_out=part == "test", widest=SIZE)
        images[index] = blend(photograph, place(ink[digit], SIZE, size, top, left)).transpose(2, 0, 1)
    return images, labels[order]


def _write_batch(path: Path, about: str, images: np.ndarray, labels: np.ndarray) -> None:
    names = [f"{CLASSES[label]}_{index:04d}.png" for index, label in enumerate(labels)]
    rows = images.reshape(len(images), -1)
    batch = {"batch_label": about, "labels": labels.tolist(), "data": rows, "filenames": names}
    path.write_bytes(python2_pickle(batch))


def python2_pickle(value: object) -> bytes:
    """The pickle, protocol 2, that the Python 2 behind CIFAR-10's files would have written of `value`.

    Its strings are byte strings, so that readers with encoding="bytes" find the keys they expect, and the bytes do not
    depend on the versions of Python and numpy. `value` is built of dict, list, str, int and uint8 arrays.
    """
    return pickle.PROTO + b"\x02" + _encode(value) + pickle.STOP


def _encode(value: object) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_encode(key) + _encode(item) for key, item in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(_encode, value)) + pickle.APPENDS
    if isinstance(value, str):
        return _encode(value.encode("ascii"))
    if isinstance(value, bytes):
        if len(value) < 256:
            return pickle.SHORT_BINSTRING + struct.pack("<B", len(value)) + value
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(_encode, value)) + pickle.TUPLE
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        ndarray, dtype = _name("numpy", "ndarray"), _name("numpy", "dtype")
        empty = pickle.MARK + ndarray + _encode((0,)) + _encode(b"b") + pickle.TUPLE
        empty = _name("numpy.core.multiarray", "_reconstruct") + empty + pickle.REDUCE
        uint8 = dtype + _encode((b"u1", 0, 1)) + pickle.REDUCE
        layout = (
            pickle.MARK + _encode(3) + _encode(b"|") + 3 * pickle.NONE + 2 * _encode(-1) + _encode(0) + pickle.TUPLE
        )
        uint8 += layout + pickle.BUILD
        state = pickle.MARK + _encode(1) + _encode(value.shape) + uint8 + _encode(0) + _encode(value.tobytes())
        return empty + state + pickle.TUPLE + pickle.BUILD
    raise TypeError(f"CIFAR-10's files hold no {type(value).__name__}")


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")
