"""What the demo sets are made of: scikit-learn's 1,797 handwritten digits and its two photographs."""

import functools

import numpy as np
from PIL import Image

_BAND = 80  # pixels across; both photographs are 640 wide
_HELD_OUT_BANDS = (2, 6)


@functools.lru_cache(maxsize=1)
def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    labels = labels.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    first, second = train_test_split(train, test_size=0.5, stratify=labels[train], random_state=0)
    parts = {"train": train, "first": first, "second": second, "test": test}
    return {name: (images[part], labels[part]) for name, part in parts.items()}


def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: (N, 8, 8) float32 ink in [0, 1] and (N,) int64 labels, the classes in equal shares.

    Args:
        part: "test", 360 digits, or "train", the other 1,437, or one of its halves, "first" (718) and "second" (719).
    """
    return _digits()[part]


@functools.lru_cache(maxsize=1)
def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def photograph_crop(rng: np.random.Generator, size: int, held_out: bool, widest: int = _BAND) -> np.ndarray:
    """A random square of a photograph, between `size` and `widest` pixels wide, as (size, size, 3) uint8.

    Each photograph is cut into eight vertical bands; two of them are kept for the test sets (`held_out`).
    """
    photographs = _photographs()
    photograph = photographs[rng.integers(len(photographs))]
    bands = [band for band in range(8) if (band in _HELD_OUT_BANDS) == held_out]
    side = int(rng.integers(size, widest + 1))
    left = bands[rng.integers(len(bands))] * _BAND + int(rng.integers(_BAND - side + 1))
    top = int(rng.integers(photograph.shape[0] - side + 1))
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def place(ink: np.ndarray, canvas: int, size: int, top: int, left: int) -> np.ndarray:
    """The (h, w) ink in [0, 1] enlarged to size x size at (top, left) of an empty (canvas, canvas) float32 image."""
    enlarged = Image.fromarray(ink).resize((size, size), Image.Resampling.BICUBIC)
    image = np.zeros((canvas, canvas), dtype=np.float32)
    image[top : top + size, left : left + size] = np.asarray(enlarged).clip(0, 1)
    return image


def blend(background: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """|background - ink|, as MNIST-M was made, of an (H, W, 3) background up to 255 and (H, W) ink up to 1: uint8."""
    return np.abs(background.astype(np.float32) - 255 * ink[..., None]).round().astype(np.uint8)
