"""The sets of digits, MNIST, MNIST-M, SVHN and SynDigits, in their published forms, brought to one size and colour.

    train, test = load("svhn", "data", img_size=32)

The demo sets come in the same forms and go through the same readers; only published checksums and counts are not asked
of a folder with the demo's marker.
"""

from collections.abc import Callable
from pathlib import Path

from common.data.demo.folder import is_demo
from common.data.download import DEMO_HINT, fetch, unpack_file, verify
from common.data.formats import (
    Labelled,
    read_class_folders,
    read_idx,
    read_listed_images,
    read_mat,
    read_torch,
)
from common.data.images import ImageSet, resize, to_three_channels
from common.errors import UserError

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
CLASSES = tuple("0123456789")
TITLES = {"mnist": "MNIST", "mnistm": "MNIST-M", "svhn": "SVHN", "syndigit": "SynDigits"}

_ALIASES = {"mnist_m": "mnistm", "mnist-m": "mnistm", "syndigits": "syndigit", "synth": "syndigit"}
# Checksums and addresses as published, written here and not taken from torchvision, whose import alone takes seconds.
_MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_SVHN_URL = "http://ufldl.stanford.edu/housenumbers"
_SVHN_MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
_MNISTM_URL = "https://github.com/liyxi/mnist-m/releases/download/data"
_MNISTM_MD5 = {
    "mnist_m_train.pt.tar.gz": "191ed53db9933bd85cc9700558847391",
    "mnist_m_test.pt.tar.gz": "e11cb4d7fff76d7ec588b1134907db59",
}
# folders below the set's own in which torchvision and others keep it, and files of which one says that it is there
_INNER = {
    "mnist": ("raw", "MNIST/raw"),
    "mnistm": ("processed", "MNISTM/processed", "mnist_m", "MNISTM"),
    "svhn": ("SVHN",),
    "syndigit": ("syndigits", "synth"),
}
_SYNDIGIT_FOLDERS, _SYNDIGIT_FILES = ("imgs_train", "imgs_valid"), ("synth_train_32x32.mat", "synth_test_32x32.mat")
_FILES = {
    "mnist": tuple(name for archive in _MNIST_MD5 for name in (archive.removesuffix(".gz"), archive)),
    "mnistm": ("mnist_m_train.pt", "mnist_m_test.pt", "mnist_m_train", "mnist_m_test"),
    "svhn": tuple(_SVHN_MD5),
    "syndigit": (*_SYNDIGIT_FOLDERS, *_SYNDIGIT_FILES),
}
# images for training and for test, by published version; SynDigits is published in several
_COUNTS = {
    "mnist": {(60_000, 10_000)},
    "mnistm": {(60_000, 10_000), (59_001, 9_001)},
    "svhn": {(73_257, 26_032)},
}


def load(name: str, root: Path | str, img_size: int, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """Read one set of digits.

    Accepted in `root`, in `root/<name>`, and at the levels below them at which torchvision keeps its files:

    - mnist: the four idx files, plain or .gz;
    - mnistm: `mnist_m_train.pt` and `mnist_m_test.pt`, or the folders of images `mnist_m_train`, `mnist_m_test` with
      `mnist_m_train_labels.txt`, `mnist_m_test_labels.txt`;
    - svhn: `train_32x32.mat` and `test_32x32.mat`;
    - syndigit: the folders `imgs_train/0..9` and `imgs_valid/0..9`, or `synth_train_32x32.mat` and
      `synth_test_32x32.mat`.

    Args:
        name: mnist, mnistm, svhn or syndigit.
        root: where to look, and where to download to.
        img_size: height and width of the images returned.
        download: fetch what is missing, where it is published for direct download (not so SynDigits).
    Returns:
        (train, test): images (3, img_size, img_size), classes "0" to "9". The sets of a demo folder say "demo" in their
        name.
    Raises:
        UserError: an unknown name, data that are not there and could not be fetched, a file that is damaged or not the
            published one, or another number of images than published.
    """
    name = resolve(name)
    root = Path(root)
    folder, parts = _READERS[name](root, img_size, download)
    demo = _in_demo(folder)
    counts = tuple(len(labels) for _, labels in parts)
    if not demo and name in _COUNTS and counts not in _COUNTS[name]:
        expected = " or ".join(f"{train} + {test}" for train, test in sorted(_COUNTS[name], reverse=True))
        raise UserError(
            f"{folder} holds {counts[0]} + {counts[1]} images for training and test; {TITLES[name]} has {expected}: "
            "delete it and fetch it again"
        )
    title = TITLES[name] + (" (demo)" if demo else "")
    sets = [
        ImageSet(images, labels, CLASSES, f"{title} {side}")
        for side, (images, labels) in zip(("train", "test"), parts, strict=True)
    ]
    train, test = (to_three_channels(resize(part, img_size)) for part in sets)
    return train, test


def resolve(name: str) -> str:
    """The one spelling of a set's name.

    Raises:
        UserError: there is no such set.
    """
    lowered = name.lower()
    lowered = _ALIASES.get(lowered, lowered)
    if lowered not in TITLES:
        raise UserError(f"there is no set of digits called {name!r}; expected one of {', '.join(TITLES)}")
    return lowered


def find(name: str, root: Path | str) -> Path | None:
    """The folder in `root` that holds a set, or part of it; nothing is read. None: there is none.

    Raises:
        UserError: there is no such set.
    """
    name = resolve(name)
    return _find(_places(Path(root), name), _FILES[name])


def _mnist(root: Path, img_size: int, download: bool) -> tuple[Path, list[Labelled]]:
    archives = list(_MNIST_MD5)  # images and labels for training, images and labels for test
    folder = find("mnist", root) or root / "MNIST" / "raw"
    files = []
    for archive in archives:
        plain, packed = folder / archive.removesuffix(".gz"), folder / archive
        if not plain.is_file():
            if not packed.is_file():
                _refuse_part_of_demo(folder, plain)
                urls = [mirror + archive for mirror in _MNIST_MIRRORS]
                _obtain("mnist", packed, urls, _MNIST_MD5[archive], download)
            verify(packed, _MNIST_MD5[archive])
        files.append(plain if plain.is_file() else packed)
    return folder, [read_idx(files[0], files[1]), read_idx(files[2], files[3])]


def _mnistm(root: Path, img_size: int, download: bool) -> tuple[Path, list[Labelled]]:
    places = _places(root, "mnistm")
    folder = _find(places, ["mnist_m_train.pt", "mnist_m_test.pt"])
    if folder is None and (images := _find(places, ["mnist_m_train", "mnist_m_test"])):
        parts = []
        for side in ("train", "test"):
            part, listing = images / f"mnist_m_{side}", images / f"mnist_m_{side}_labels.txt"
            for path in (part, listing):
                if not path.exists():
                    raise UserError(
                        f"{path} is missing: expected images and labels of both sides; unpack the data again"
                    )
            parts.append(read_listed_images(part, listing, img_size))
        return images, parts
    folder = folder or root / "MNISTM" / "processed"
    for archive, md5 in _MNISTM_MD5.items():
        file = folder / archive.removesuffix(".tar.gz")
        if not file.is_file():
            _refuse_part_of_demo(folder, file)
            packed = folder.parent / "raw" / archive
            if not packed.is_file():
                _obtain("mnistm", packed, [f"{_MNISTM_URL}/{archive}"], md5, download)
            verify(packed, md5)
            unpack_file(packed, file)
    return folder, [read_torch(folder / "mnist_m_train.pt"), read_torch(folder / "mnist_m_test.pt")]


def _svhn(root: Path, img_size: int, download: bool) -> tuple[Path, list[Labelled]]:
    names = list(_SVHN_MD5)
    folder = find("svhn", root) or root / "svhn"
    for name, md5 in _SVHN_MD5.items():
        if not (folder / name).is_file():
            _refuse_part_of_demo(folder, folder / name)
            _obtain("svhn", folder / name, [f"{_SVHN_URL}/{name}"], md5, download)
        elif not _in_demo(folder):
            verify(folder / name, md5)
    return folder, [read_mat(folder / name) for name in names]


def _syndigit(root: Path, img_size: int, download: bool) -> tuple[Path, list[Labelled]]:
    places = _places(root, "syndigit")
    for names, read in (
        (_SYNDIGIT_FOLDERS, lambda path: read_class_folders(path, CLASSES, img_size)),
        (_SYNDIGIT_FILES, read_mat),
    ):
        folder = _find(places, names)
        if folder is not None:
            for name in names:
                if not (folder / name).exists():
                    raise UserError(
                        f"{folder / name} is missing: expected {' and '.join(names)}; unpack the data again"
                    )
            return folder, [read(folder / name) for name in names]
    raise UserError(
        f"no SynDigits in {root}: expected imgs_train/0..9 and imgs_valid/0..9 (Kaggle, prasunroy/synthetic-digits) or "
        f"synth_train_32x32.mat and synth_test_32x32.mat; unpack either of them at {root / 'syndigit'}, {DEMO_HINT}"
    )


_READERS: dict[str, Callable[[Path, int, bool], tuple[Path, list[Labelled]]]] = {
    "mnist": _mnist,
    "mnistm": _mnistm,
    "svhn": _svhn,
    "syndigit": _syndigit,
}


def _places(root: Path, name: str) -> list[Path]:
    return [base / level for base in (root, root / name) for level in ("", *_INNER[name])]


def _find(places: list[Path], names: list[str] | tuple[str, ...]) -> Path | None:
    """The first place that holds anything of these names."""
    return next((place for place in places if any((place / name).exists() for name in names)), None)


def _in_demo(folder: Path) -> bool:
    return any(is_demo(place) for place in (folder, *folder.parents[:2]))


def _refuse_part_of_demo(folder: Path, path: Path) -> None:
    if _in_demo(folder):
        raise UserError(f"{path} is missing from the demo data; delete their folder and run again with --demo")


def _obtain(name: str, path: Path, urls: list[str], md5: str, download: bool) -> None:
    """Fetch `path` from the first of `urls` that answers."""
    if not download:
        raise UserError(
            f"no {TITLES[name]} in {path.parent}: {path.name} is missing; fetch {urls[0]} and put it there, "
            f"allow it with --download True, {DEMO_HINT}"
        )
    for url in urls[:-1]:
        try:
            fetch(url, path, md5, DEMO_HINT)
            return
        except UserError:
            continue  # the next mirror may answer
    fetch(urls[-1], path, md5, DEMO_HINT)
