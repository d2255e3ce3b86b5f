"""CIFAR-10 in its published form: the folder `cifar-10-batches-py` of pickled batches; the reader is CIFAR-100's too.

The demo data come in the same form and go through the same reader. Only the checksums differ: those of the published
files are required of every folder that does not carry the demo's marker.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from common.data.demo.folder import is_demo
from common.data.download import DEMO_HINT, fetch, md5_of, unpack
from common.data.images import ImageSet
from common.errors import UserError
from common.reading import MOST_AT_ONCE, ordinary

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

FOLDER = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
META = "batches.meta"

# Checksums and address as published, written here and not taken from torchvision, whose import alone takes seconds.
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    TEST_BATCH: "40351d587109b95175f43aff81a1287e",
    META: "5ff9c542aee3614f3951f8cda6e48888",
}
_IMAGES_PER_BATCH = 10_000
SIDE = 32
_SHAPE = (3, SIDE, SIDE)


@dataclass(frozen=True)
class Published:
    """A CIFAR set as its authors publish it.

    Attributes:
        name: for messages; names of its sets begin with its lower case without the dash.
        folder: of its files. url, archive_md5: of the archive that holds the folder.
        md5: of every file. train, test, meta: which files hold what. images: of one training file.
        test_images: of the test file. class_key, label_key: what the files call class names and labels.
    """

    name: str
    folder: str
    url: str
    archive_md5: str
    md5: dict[str, str]
    train: tuple[str, ...]
    test: str
    meta: str
    images: int
    test_images: int
    class_key: str
    label_key: str


PUBLISHED = Published(
    *("CIFAR-10", FOLDER, _URL, _ARCHIVE_MD5, _MD5, TRAIN_BATCHES, TEST_BATCH, META),
    images=_IMAGES_PER_BATCH,
    test_images=_IMAGES_PER_BATCH,
    class_key="label_names",
    label_key="labels",
)


def load(data_dir: Path | str, download: bool = True, of: Published = PUBLISHED) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-10, or the set ``of`` its kind.

    Args:
        data_dir: the folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or `cifar-10-batches-py`
            itself.
        download: fetch the archive into `data_dir` if nothing is there.
    Returns:
        (train, test): 50,000 and 10,000 images (3, 32, 32). A demo folder has fewer, and "demo" in its sets' names.
    Raises:
        UserError: the data are not there and could not be fetched; a batch is missing, is not the published file, or
            does not hold what a batch holds.
    """
    folder = _find(Path(data_dir), download, of)
    demo = is_demo(folder)
    for name in () if demo else of.md5:
        _verify(folder / name, of)
    classes = _read_classes(folder / of.meta, of)
    name = f"{of.name} (demo)" if demo else of.name
    train = _read_batches(
        [folder / batch for batch in of.train], classes, f"{name} train", None if demo else of.images, of
    )
    test = _read_batches([folder / of.test], classes, f"{name} test", None if demo else of.test_images, of)
    return train, test


def find(data_dir: Path | str, of: Published = PUBLISHED) -> Path | None:
    """The folder of batches in `data_dir`, or else the archive, which `load` unpacks; None: neither is there."""
    data_dir = Path(data_dir)
    for folder in (data_dir / of.folder, data_dir):
        if (folder / of.meta).is_file() or (folder / of.train[0]).is_file():
            return folder
    archive = data_dir / of.url.rsplit("/", 1)[1]
    return archive if archive.is_file() else None


def _find(data_dir: Path, download: bool, of: Published) -> Path:
    inside = data_dir / of.folder
    found = find(data_dir, of)
    if found is not None and found.is_dir():
        return found
    archive = data_dir / of.url.rsplit("/", 1)[1]
    if download:
        fetch(of.url, archive, of.archive_md5, DEMO_HINT)
    elif not archive.is_file():
        raise UserError(
            f"no {of.name} in {data_dir}: expected {of.folder}/ or {archive.name} there; fetch {of.url} and "
            f"put it there, allow it with --download True, {DEMO_HINT}"
        )
    return unpack(archive, inside)


def _verify(path: Path, of: Published) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: expected all of {', '.join(of.md5)}; {_again(path)}")
    found = md5_of(path)
    if found != of.md5[path.name]:
        raise UserError(
            f"{path} is damaged: its md5 is {found}, the published file's {of.md5[path.name]}; {_again(path)}"
        )


def _again(path: Path) -> str:
    return f"delete {path.parent} and run again to make it afresh"


def _read_classes(path: Path, of: Published) -> tuple[str, ...]:
    names = _read_pickle(path, of).get(of.class_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged: expected a list of class names under '{of.class_key}'; {_again(path)}")
    return tuple(names)


def _read_batches(
    paths: list[Path], classes: tuple[str, ...], name: str, expected: int | None, of: Published
) -> ImageSet:
    batches = [_read_batch(path, len(classes), expected, of) for path in paths]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), classes, name)


def _read_batch(path: Path, classes: int, expected: int | None, of: Published) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, 32, 32) uint8 images and (N,) int64 labels of one batch."""
    batch = _read_pickle(path, of)
    data, labels = batch.get("data"), batch.get(of.label_key)
    width = int(np.prod(_SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != width:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(
            f"{path} is damaged: expected uint8 images (N, {width}) under 'data', found {found}; {_again(path)}"
        )
    if expected is not None and len(data) != expected:
        raise UserError(f"{path} is damaged: expected {expected} images, found {len(data)}; {_again(path)}")
    if not isinstance(labels, list) or len(labels) != len(data):
        found = str(len(labels)) if isinstance(labels, list) else "none"
        raise UserError(f"{path} is damaged: expected {len(data)} labels for its images, found {found}; {_again(path)}")
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise UserError(f"{path} is damaged: expected labels from 0 to {classes - 1}; {_again(path)}")
    return data.reshape(-1, *_SHAPE), np.array(labels, dtype=np.int64)


def _read_pickle(path: Path, of: Published) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: expected all of {', '.join(of.md5)}; {_again(path)}")
    ordinary(path, f"a batch of {of.name}", MOST_AT_ONCE)
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle fails in whatever way its bytes say
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged: it cannot be read ({reason}); {_again(path)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected a dictionary, found {type(content).__name__}; {_again(path)}")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays besides plain values, so that a batch from anywhere cannot run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # what an array says it is rebuilt by, under the module's old name and its new one
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and a batch holds nothing but arrays")
        return self._ALLOWED[module, name]
