"""CIFAR-10, CIFAR-100, the demo, or a folder with train/ and test/ or val/, as the sets of a run."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from common.data import cifar10, cifar10c, cifar100
from common.data.demo import cifar10 as demo_cifar10
from common.data.folder_batches import FolderBatches
from common.data.folders import ImageList, check_same_classes, find_class_folder, read_domain
from common.data.images import ImageSet
from common.data.kinds.base import Batches, Batching, DataKind, DataOptions, RunData
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.splits import partition
from common.data.tensors import TensorBatches
from common.errors import UserError
from common.flags import boolean, flag, fraction, natural, number, path, seed_number, shown

KNOWN: dict[str, ModuleType] = {"cifar10": cifar10, "cifar100": cifar100}
PHOTOGRAPHS = 64  # pixels of a side from which images are cropped as photographs are

NONE, OWN, PUBLISHED = "none", "own", "cifar10c"  # what --shift means


def shift_kind(text: str) -> str:
    """own for a bare flag and for true, none for false, or cifar10c."""
    if text in (NONE, OWN, PUBLISHED):
        return text
    try:
        return OWN if boolean(text) else NONE
    except ArgumentTypeError:
        raise ArgumentTypeError(f"expected true or false, {OWN}, {NONE} or {PUBLISHED}, not {shown(text)}") from None


@dataclass(frozen=True)
class Cifar10Options(DataOptions):
    dataset: str = flag("cifar10", path, "cifar10, cifar100, or a folder with train/ and test/ or val/")
    img_size: int = flag(cifar10.SIDE, number(int, 16, 1024, "a side"), "side of the images")
    select: str = flag("test", help="what chooses model_best.pt", choices=("test", "val", "last"))
    val_fraction: float = flag(0.1, fraction, "share of the training set held out by --select val")
    split_seed: int = flag(1, seed_number, "of what --select val holds out, the same for all seeds of a comparison")
    shift: str = flag(
        NONE,
        shift_kind,
        "also evaluate on corrupted test images: the project's own corruptions, or cifar10c, the published files",
        nargs="?",
        const=OWN,
    )
    shift_images: int = flag(0, natural, "how many corrupted test images --shift takes of each; 0: all")

    @property
    def side(self) -> int:
        return self.img_size


def load(options: Cifar10Options, batching: Batching) -> RunData:
    """Training and test set and, for --select val, "val": of a folder that has val/ beside test/ that, else held out.

    Raises:
        UserError: the data are not there or not as they should be, or --demo or --shift cifar10c is asked of a folder.
    """
    if options.demo and options.dataset != "cifar10":
        raise UserError(
            f"--demo: the images are those of --dataset {options.dataset}, as typed or as in the file's run, and the "
            "demo has images of its own; leave --demo out"
        )
    if options.dataset not in KNOWN:
        return _load_folder(options, batching)
    source = KNOWN[options.dataset]
    folder = data_folder(options.data_dir, "demo" if options.demo else options.dataset)
    if options.shift == PUBLISHED:
        published_corruptions(options)  # before anything is trained
    if options.demo:
        root = demo_cifar10.write(folder / "demo" / "cifar10")
    else:
        below = folder / options.dataset
        root = below if below.exists() or options.data_dir is None else folder
    train, test = source.load(root, download=options.download)
    tests = {"test": test}
    if options.select == "val":
        train, tests["val"] = train.split(options.val_fraction, options.split_seed)

    def batches(images: ImageSet, training: bool) -> TensorBatches:
        return TensorBatches(
            image_set=images,
            batch_size=batching.train if training else batching.test,
            mean=source.MEAN,
            std=source.STD,
            seed=batching.seed,
            shuffle=training,
            augment="crop_flip" if training else None,
            size=options.img_size,
            device=batching.device,
            share=batching.share if training else Share(),
        )

    return RunData(
        {"source": batches(train, training=True)},
        {name: batches(images, training=False) for name, images in tests.items()},
        test.classes,
        "training split for training, test split for test",
    )


def _load_folder(options: Cifar10Options, batching: Batching) -> RunData:
    if options.shift == PUBLISHED:
        published_corruptions(options)
    root = Path(options.dataset)
    if not root.is_dir():
        raise UserError(
            f"--dataset {root}: there is no such folder; expected {', '.join(KNOWN)}, or a folder with train/ and "
            "test/ or val/, class folders in each"
        )
    if missing := [part for part in ("train",) if not (root / part).is_dir()]:
        raise UserError(f"--dataset {root}: no {missing[0]}/ in it; expected train/ and test/ or val/")
    parts = [part for part in ("test", "val") if (root / part).is_dir()]
    if not parts:
        raise UserError(f"--dataset {root}: neither test/ nor val/ in it; expected class folders to test on")
    train, test = _read(root, "train"), _read(root, parts[0])
    check_same_classes(train, test)
    tests = {"test": test}
    if options.select == "val" and len(parts) == 2:
        tests["val"] = _read(root, "val")
        check_same_classes(train, tests["val"])
    elif options.select == "val":
        held = partition(train, folder=batching.folder, fraction=1 - options.val_fraction, seed=options.split_seed)
        train, tests["val"] = held.train, held.test

    def batches(images: ImageList, training: bool) -> FolderBatches:
        return FolderBatches(
            image_list=images,
            batch_size=batching.train if training else batching.test,
            img_size=options.img_size,
            train=training,
            augment="resized_crop" if options.img_size >= PHOTOGRAPHS else "pad_crop_flip",
            seed=batching.seed,
            num_workers=options.num_workers,
            device=batching.device,
            share=batching.share if training else Share(),
        )

    sets: dict[str, Batches] = {name: batches(images, training=False) for name, images in tests.items()}
    protocol = f"train/ for training, {parts[0]}/ for test"
    return RunData({"source": batches(train, training=True)}, sets, train.classes, protocol)


def _read(root: Path, part: str) -> ImageList:
    try:
        find_class_folder(root, part)
        return read_domain(root, part)
    except UserError as error:
        raise UserError(f"--dataset {root}: {str(error).split(': give', maxsplit=1)[0]}") from None


def published_corruptions(options: Cifar10Options) -> Path:
    """The folder of CIFAR-10-C.

    Raises:
        UserError: it is not there or not complete, or the run is one on demo data.
    """
    if options.demo or options.dataset != "cifar10":
        other = "demo" if options.demo else f"dataset {options.dataset}"
        raise UserError(f"--shift cifar10c --{other}: its images are CIFAR-10's; leave one of them out")
    return cifar10c.find(data_folder(options.data_dir, cifar10c.FOLDERS[0]))


def split_seen(options: Cifar10Options, other: dict[str, Any]) -> str:
    held_out = ("select", "val_fraction", "split_seed")
    if options.select != "val" or all(other.get(name) == getattr(options, name) for name in held_out):
        return ""
    was = ", ".join(f"--{name} {other.get(name)}" for name in held_out)
    return f"it was trained on images that --select val holds out here (it had {was})"


CIFAR10 = DataKind(
    "cifar10",
    Cifar10Options,
    load,
    domains=False,
    split_seen=split_seen,
    chooses=("demo", "dataset", "img_size", "split_seed"),
    classes=lambda demo: demo_cifar10.CLASSES if demo else cifar10.CLASSES,
)
