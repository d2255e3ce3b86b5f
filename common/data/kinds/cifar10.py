"""CIFAR-10, or its demo, as the sets of a run."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data import cifar10, cifar10c
from common.data.demo import cifar10 as demo_cifar10
from common.data.kinds.base import Batching, DataKind, DataOptions, RunData
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.tensors import ImageSet, TensorBatches
from common.errors import UserError
from common.flags import boolean, flag, fraction, natural, seed_number, shown

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
        return cifar10.SIDE


def load(options: Cifar10Options, batching: Batching) -> RunData:
    """Training and test set and, for --select val, "val", which is then held out of the training set."""
    folder = data_folder(options.data_dir, "demo" if options.demo else "cifar10")
    if options.shift == PUBLISHED:
        published_corruptions(options)  # before anything is trained
    if options.demo:
        root = demo_cifar10.write(folder / "demo" / "cifar10")
    else:
        root = folder / "cifar10" if (folder / "cifar10").exists() or options.data_dir is None else folder
    train, test = cifar10.load(root, download=options.download)
    tests = {"test": test}
    if options.select == "val":
        train, tests["val"] = train.split(options.val_fraction, options.split_seed)
    return RunData(
        {"source": make_batches(train, batching, train=True)},
        {name: make_batches(images, batching, train=False) for name, images in tests.items()},
        test.classes,
        "training split for training, test split for test",
    )


def published_corruptions(options: Cifar10Options) -> Path:
    """The folder of CIFAR-10-C.

    Raises:
        UserError: it is not there or not complete, or the run is one on demo data.
    """
    if options.demo:
        raise UserError("--shift cifar10c --demo: its images are CIFAR-10's; leave one of them out")
    return cifar10c.find(data_folder(options.data_dir, cifar10c.FOLDERS[0]))


def make_batches(images: ImageSet, batching: Batching, train: bool) -> TensorBatches:
    return TensorBatches(
        image_set=images,
        batch_size=batching.train if train else batching.test,
        mean=cifar10.MEAN,
        std=cifar10.STD,
        seed=batching.seed,
        shuffle=train,
        augment="crop_flip" if train else None,
        device=batching.device,
        share=batching.share if train else Share(),
    )


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
    chooses=("demo", "split_seed"),
    classes=lambda demo: demo_cifar10.CLASSES if demo else cifar10.CLASSES,
)
