"""The sets of a run as batches, whatever they are of, and what every kind of data is asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.folder_batches import FolderBatches
from common.data.sharding import Share
from common.data.tensors import TensorBatches
from common.errors import UserError
from common.flags import flag, number, path, switch

DOMAINS = ("source", "target")
SELECT = ("target", "source", "last", "entropy", "im", "snd")  # what chooses the best epoch of two domains


Batches = TensorBatches | FolderBatches


@dataclass(frozen=True)
class DataOptions:
    """What all kinds of data have; each also says the ``side`` of its images."""

    data_dir: str | None = flag(None, path, "folder of the data (default: ./data, then the repository's data/)")
    download: bool = switch(True, "fetch a missing data set")
    demo: bool = switch(False, "train on small demo data in the real formats")
    num_workers: int = flag(2, number(int, 0, 256), "processes that load images (data held in memory need none)")


@dataclass(frozen=True)
class Batching:
    """How a run draws batches.

    Attributes:
        train, test: samples of a batch. seed: of order and augmentation.
        share: this process's part of training batches. folder: the run's, where lists of a split are kept.
    """

    train: int
    test: int
    seed: int
    device: torch.device
    share: Share = Share()
    folder: Path | None = None


@dataclass(frozen=True)
class RunData:
    """The sets of a run.

    Attributes:
        train: batches by domain, "source" and, where there is one, "target".
        test: by name, the one that results are about first: "target" and "source", or "test" and perhaps "val".
        classes: names, of all domains. protocol: what trains and what tests, which a result must name.
    """

    train: dict[str, Batches]
    test: dict[str, Batches]
    classes: tuple[str, ...]
    protocol: str

    def steps(self, epoch_length: str) -> int:
        """Steps of an epoch: batches of the shorter ("min") or the longer ("max") domain."""
        return (min if epoch_length == "min" else max)(len(batches) for batches in self.train.values())


@dataclass(frozen=True)
class DataKind:
    """A kind of data that tasks have. A new one is one file and one line in ``DATA``.

    Attributes:
        name: in ``DATA``. Options: its flags, a frozen dataclass derived from ``DataOptions``.
        load: options and batching to the run's sets.
        domains: whether it has a source and a target.
        split_seen: (options, configuration of another run) to a line that says why the other run may have trained on
            what this one tests on, or "".
    """

    name: str
    Options: type
    load: Callable[[Any, Batching], RunData]
    domains: bool
    split_seen: Callable[[Any, dict[str, Any]], str]


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


def refuse_same(pair: tuple[str, str]) -> None:
    if pair[0] == pair[1]:
        raise UserError(f"--src_data and --tgt_data are both {pair[0]}; expected two different domains")
