"""The four sets of a cross-domain run, as batches: source and target, training and test."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from common.config.tasks import REPOSITORY
from common.data import digits, office31
from common.data.demo import digits as demo_digits
from common.data.demo import office31 as demo_office31
from common.data.folder_batches import FolderBatches
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.splits import Partition
from common.data.tensors import ImageSet, TensorBatches
from common.errors import UserError
from common.machine import distributed

Batches = TensorBatches | FolderBatches
DOMAINS = ("source", "target")


@dataclass(frozen=True)
class CrossData:
    """Batches by domain, the class names that both domains share, and the protocol that a result must name."""

    train: dict[str, Batches]
    test: dict[str, Batches]
    classes: tuple[str, ...]
    protocol: str

    def steps(self, epoch_length: str) -> int:
        """Steps of an epoch: batches of the shorter ("min") or the longer ("max") domain."""
        return (min if epoch_length == "min" else max)(len(batches) for batches in self.train.values())


def cyclic(batches: Batches, epoch: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` batches of an epoch; a set that is too short starts over in another order."""
    cycle = 0
    while steps > 0:
        batches.set_epoch(epoch, cycle)
        for batch in batches:
            yield batch
            steps -= 1
            if steps == 0:
                break
        cycle += 1


def load_digits(options: argparse.Namespace, device: torch.device) -> CrossData:
    """MNIST, MNIST-M, SVHN and SynDigits by --src_data and --tgt_data."""
    names = [digits.resolve(name) for name in options.pair]
    _refuse_same(names)
    folder = data_folder(options.data_dir, REPOSITORY, "demo" if options.demo else names[0])
    sets: dict[str, tuple[ImageSet, ImageSet]] = {}
    for domain, name in zip(DOMAINS, names, strict=True):
        root = folder
        if options.demo:
            root = demo_digits.write(folder / "demo", name)
        elif name == "mnistm" and options.tgt_data_dir is not None:
            root = Path(options.tgt_data_dir)
        train, test = digits.load(name, root, options.img_size, options.download)
        _refuse_missing_class(train)
        if not (options.src_split if domain == "source" else options.tgt_split):
            train = replace(
                train, images=torch.cat((train.images, test.images)), labels=torch.cat((train.labels, test.labels))
            )
        sets[domain] = (train, test)

    def batches(domain: str, train: bool) -> TensorBatches:
        return TensorBatches(
            image_set=sets[domain][0 if train else 1],
            batch_size=options.train_batch_size if train else options.eval_batch_size,
            mean=digits.MEAN,
            std=digits.STD,
            seed=options.seed,
            domain=domain,
            shuffle=train,
            drop_last=train,
            device=device,
            share=distributed.share() if train else Share(),
        )

    whole = [d for d, split in zip(DOMAINS, (options.src_split, options.tgt_split), strict=True) if not split]
    protocol = "training split for training, test split for test" + "".join(f", {d} trained on both" for d in whole)
    return CrossData(
        {domain: batches(domain, True) for domain in DOMAINS},
        {domain: batches(domain, False) for domain in DOMAINS},
        digits.CLASSES,
        protocol,
    )


def load_office(options: argparse.Namespace, device: torch.device, split_dir: Path) -> CrossData:
    """Office-31, or other domain folders of the same shape, by --src_data and --tgt_data."""
    _refuse_same(options.pair)
    folder = data_folder(options.data_dir, REPOSITORY, "demo" if options.demo else office31.FOLDER)
    if options.demo:
        folder = demo_office31.write(folder / "demo")
    parts: dict[str, Partition] = dict(
        zip(
            DOMAINS,
            office31.load_pair(
                folder,
                *options.pair,
                train_split=options.train_split,
                split_dir=split_dir,
                seed=options.seed,
                allow_partial=options.allow_partial,
            ),
            strict=True,
        )
    )

    def batches(domain: str, train: bool) -> FolderBatches:
        return FolderBatches(
            image_list=parts[domain].train if train else parts[domain].test,
            batch_size=options.train_batch_size if train else options.eval_batch_size,
            img_size=options.img_size,
            train=train,
            seed=options.seed,
            domain=domain,
            num_workers=options.num_workers,
            drop_last=train,
            device=device,
            share=distributed.share() if train else Share(),
        )

    return CrossData(
        {domain: batches(domain, True) for domain in DOMAINS},
        {domain: batches(domain, False) for domain in DOMAINS},
        tuple(parts["source"].train.classes),
        parts["target"].protocol,
    )


def _refuse_same(pair: list[str] | tuple[str, str]) -> None:
    if pair[0] == pair[1]:
        raise UserError(f"--src_data and --tgt_data are both {pair[0]}; expected two different domains")


def _refuse_missing_class(images: ImageSet) -> None:
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    if (counts == 0).any():
        empty = images.classes[int((counts == 0).nonzero()[0])]
        raise UserError(f"{images.name} has no image of class {empty}; expected all of {', '.join(images.classes)}")
