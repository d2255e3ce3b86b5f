"""Two folders of class folders, such as those of Office-31, as source and target of a run."""

from dataclasses import dataclass
from typing import Any

from common.data import office31
from common.data.demo import office31 as demo_office31
from common.data.folder_batches import FolderBatches
from common.data.kinds.base import DOMAINS, SELECT, Batching, DataKind, DataOptions, RunData, refuse_same
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.splits import Partition
from common.flags import flag, name_below, number, seed_number, switch


@dataclass(frozen=True)
class OfficeOptions(DataOptions):
    src_data: str | None = flag(None, name_below, "source domain")
    tgt_data: str | None = flag(None, name_below, "target domain")
    src_split: bool = switch(True, "accepted, without use: --train_split divides both domains")
    tgt_split: bool = switch(True, "accepted, without use: --train_split divides both domains")
    train_split: bool = switch(True, "80/20 split; False: the whole domain for training and test")
    split_seed: int = flag(1, seed_number, "of that split, the same for all seeds of a comparison")
    img_size: int = flag(224, number(int, 16, 4096, "a side"), "side of the images")
    allow_partial: bool = switch(False, "accept Office-31 with other counts than the known ones")
    select: str = flag("target", help="what chooses model_best.pt", choices=SELECT)

    @property
    def side(self) -> int:
        return self.img_size

    @property
    def pair(self) -> tuple[str, str]:
        assert self.src_data is not None
        assert self.tgt_data is not None
        return self.src_data, self.tgt_data


def load(options: OfficeOptions, batching: Batching) -> RunData:
    refuse_same(options.pair)
    folder = data_folder(options.data_dir, "demo" if options.demo else office31.FOLDER)
    if options.demo:
        folder = demo_office31.write(folder / "demo")
    parts: dict[str, Partition] = dict(
        zip(
            DOMAINS,
            office31.load_pair(
                folder,
                *options.pair,
                train_split=options.train_split,
                split_dir=batching.folder,
                seed=options.split_seed,
                allow_partial=options.allow_partial,
            ),
            strict=True,
        )
    )

    def batches(domain: str, train: bool) -> FolderBatches:
        return FolderBatches(
            image_list=parts[domain].train if train else parts[domain].test,
            batch_size=batching.train if train else batching.test,
            img_size=options.img_size,
            train=train,
            seed=batching.seed,
            domain=domain,
            num_workers=options.num_workers,
            drop_last=train,
            device=batching.device,
            share=batching.share if train else Share(),
        )

    return RunData(
        {domain: batches(domain, True) for domain in DOMAINS},
        {domain: batches(domain, False) for domain in reversed(DOMAINS)},
        tuple(parts["source"].train.classes),
        parts["target"].protocol,
    )


def split_seen(options: OfficeOptions, other: dict[str, Any]) -> str:
    """Whole domains are tested on what they are trained on by their own protocol; a split is not."""
    if not options.train_split:
        return ""
    if other.get("train_split") is False:
        return "it was trained on whole domains, this run's test images among them (it had --train_split False)"
    seed_of_other = other.get("split_seed", other.get("seed"))  # before --split_seed, a split followed --seed
    if seed_of_other in (None, options.split_seed):
        return ""
    return f"it was trained on another split (--split_seed {seed_of_other}), this run's test images among its own"


OFFICE = DataKind(
    "office",
    OfficeOptions,
    load,
    domains=True,
    split_seen=split_seen,
    chooses=("demo", "src_data", "tgt_data", "train_split", "split_seed", "img_size"),
    classes=lambda demo: office31.CLASSES,
)
