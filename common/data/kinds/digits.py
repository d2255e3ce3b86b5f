"""Two sets of digits, MNIST, MNIST-M, SVHN or SynDigits, as source and target of a run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from common.data import digits
from common.data.demo import digits as demo_digits
from common.data.images import ImageSet
from common.data.kinds.base import DOMAINS, SELECT, Batching, DataKind, DataOptions, RunData, refuse_same
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.tensors import TensorBatches
from common.errors import UserError
from common.flags import flag, name_below, number, path, switch


@dataclass(frozen=True)
class DigitsOptions(DataOptions):
    src_data: str | None = flag(None, name_below, "source domain")
    tgt_data: str | None = flag(None, name_below, "target domain")
    src_split: bool = switch(True, "train on the source's training split")
    tgt_split: bool = switch(True, "train on the target's training split")
    tgt_data_dir: str | None = flag(None, path, "folder of MNIST-M")
    img_size: int = flag(28, number(int, 16, 256, "a side"), "side of the images")
    select: str = flag("target", help="what chooses model_best.pt", choices=SELECT)

    @property
    def side(self) -> int:
        return self.img_size

    @property
    def pair(self) -> tuple[str, str]:
        assert self.src_data is not None
        assert self.tgt_data is not None
        return self.src_data, self.tgt_data


def load(options: DigitsOptions, batching: Batching) -> RunData:
    names = [digits.resolve(name) for name in options.pair]
    refuse_same((names[0], names[1]))
    folder = data_folder(options.data_dir, "demo" if options.demo else names[0])
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
            batch_size=batching.train if train else batching.test,
            mean=digits.MEAN,
            std=digits.STD,
            seed=batching.seed,
            domain=domain,
            shuffle=train,
            drop_last=train,
            device=batching.device,
            share=batching.share if train else Share(),
        )

    whole = [d for d, split in zip(DOMAINS, (options.src_split, options.tgt_split), strict=True) if not split]
    protocol = "training split for training, test split for test" + "".join(f", {d} trained on both" for d in whole)
    return RunData(
        {domain: batches(domain, True) for domain in DOMAINS},
        {domain: batches(domain, False) for domain in reversed(DOMAINS)},
        digits.CLASSES,
        protocol,
    )


def _refuse_missing_class(images: ImageSet) -> None:
    counts = torch.bincount(images.labels, minlength=len(images.classes))
    if (counts == 0).any():
        empty = images.classes[int((counts == 0).nonzero()[0])]
        raise UserError(f"{images.name} has no image of class {empty}; expected all of {', '.join(images.classes)}")


def split_seen(options: DigitsOptions, other: dict[str, Any]) -> str:
    whole = [name for name in ("src_split", "tgt_split") if other.get(name) is False and getattr(options, name)]
    return f"it was trained on the test split too (--{whole[0]} False)" if whole else ""


DIGITS = DataKind(
    "digits",
    DigitsOptions,
    load,
    domains=True,
    split_seen=split_seen,
    chooses=("demo", "src_data", "tgt_data", "img_size"),
    classes=lambda demo: digits.CLASSES,
)
