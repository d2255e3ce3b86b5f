"""What a finished run's network is worth on a domain, re-aligned by more and more of its images."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation.realign import FEWEST, PRIOR, realign
from common.data.corruptions import STRENGTHS, corrupt
from common.data.images import drawn, of_every_class
from common.data.kinds import DATA, Batches, Batching
from common.data.tensors import TensorBatches
from common.deploy import packed
from common.deploy.alignment import base_digest
from common.deploy.description import Description
from common.deploy.restore import restore
from common.engine.realignment import know_offsets
from common.errors import UserError
from common.flags import flags_of
from common.models import class_logits
from tools.runs import recorded
from tools.timing.measuring import interleave, ratios

COUNTS = (1, 4, 16, 64, 256, 1000)  # images to re-align by
DRAWS = 3  # of fewer images than ``FEWEST``; of more, one
STRONGEST = 3  # level of every corruption
TESTED, CLEAN = 500, 1000  # test images, corrupted and clean
STREAM, SIZES = 256, (8, 32)  # images of a stream, and how many come at once
TIMED, ROUNDS, BATCH = 256, 5, 32  # images, rounds, and a batch of the forward pass they are compared with

Row = dict[str, Any]  # a line of docs/results/realign.jsonl


@dataclass(frozen=True)
class Domain:
    """
    Attributes:
        sample: (number, draw) to images to re-align by, of those that are trained on, without labels.
        images, labels: what is tested on, (N, 3, H, W) float32 normalised and (N,) int64.
    """

    name: str
    sample: Callable[[int, int], Tensor]
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Trained:
    """A finished run: its network at the last epoch; ``base`` tells it from every other."""

    name: str
    network: nn.Module
    base: str
    description: Description
    summary: dict[str, Any]

    def domains(self, data_dir: Path | None) -> Iterator[Domain]:
        """The clean test set and each corruption at its strongest; of a run with two domains, these.

        The network then knows its offsets, as a run's own file does.
        """
        kind = DATA[self.description.data_kind]
        given = {name: value for name, value in self.description.data.items() if name in flags_of(kind.Options)}
        options = kind.Options(**given, data_dir=None if data_dir is None else str(data_dir))
        data = kind.load(options, Batching(train=1, test=1, seed=0, device=torch.device("cpu")))
        know_offsets(self.network, data, self.summary.get("adaptation") not in (None, "source_only"))
        for name, test in data.test.items():
            train = data.train.get(name, data.train["source"])
            others, clean = train.held(drawn(max(COUNTS), train.samples, seed=2)), _some(test, CLEAN)
            yield _domain("clean" if name == "test" else name, others, clean)
            if name == "test":
                some = _some(test, TESTED)
                for corruption in STRENGTHS:
                    yield _domain(
                        corruption, *(_corrupted(one, corruption, seed) for seed, one in ((1, others), (0, some)))
                    )

    def bytes(self) -> int:
        """Of its packed file."""
        with TemporaryDirectory() as folder:
            packed.save(self.network, self.description, path := Path(folder) / "model.safetensors")
            return path.stat().st_size

    def row(self, domain: Domain) -> Row:
        """The line of a domain; on clean images also what one class at a time does, and the time."""
        scheme = self.description.scheme
        found: Row = {
            "run": self.name,
            "base": self.base,
            "method": scheme["method"] if scheme["bitW"] < 32 else "float",
            "bits": scheme["bitW"],
            "adaptation": self.summary.get("adaptation"),
            "epochs": self.summary["last"]["epoch"] + 1,
            "demo": self.description.demo,
            "bytes": self.bytes(),
            "domain": domain.name,
            "tested": len(domain.labels),
            "before": top1(self.network, domain.images, domain.labels),
            "prior": PRIOR,
            "with": self._by_count(domain, PRIOR),
            "without": self._by_count(domain, 0),
            "stream": self._stream(domain),
        }
        if domain.name != "clean":
            return found
        return found | {"one_class": self._one_class(domain), "time": self._time(domain)}

    def _by_count(self, domain: Domain, prior: float) -> dict[str, list[float]]:
        """Top-1 by number of images, of each draw; fewer than ``FEWEST`` have a prior."""
        found: dict[str, list[float]] = {}
        for count in COUNTS:
            if count < FEWEST and prior == 0:
                continue
            found[str(count)] = []
            for draw in range(DRAWS if count < FEWEST else 1):
                network = copy.deepcopy(self.network)
                realign(network, domain.sample(count, draw), prior)
                found[str(count)].append(top1(network, domain.images, domain.labels))
        return found

    def _stream(self, domain: Domain) -> dict[str, Any]:
        """Top-1 on a mixed stream as predict --online has it, by the number that come at once."""
        places = torch.randperm(len(domain.labels), generator=torch.Generator().manual_seed(0))[:STREAM]
        images, labels = domain.images[places], domain.labels[places]
        found = {str(size): online(copy.deepcopy(self.network), images, labels, size) for size in SIZES}
        return {"images": len(labels), "before": top1(self.network, images, labels), **found}

    def _one_class(self, domain: Domain) -> dict[str, Any]:
        """For each class, top-1 on a stream of it alone, and on all images behind it."""
        found: dict[str, Any] = {"before": [], "stream": [], "after": []}
        for label in domain.labels.unique().tolist():
            own = domain.labels == label
            images, labels, network = domain.images[own], domain.labels[own], copy.deepcopy(self.network)
            found["before"].append(top1(network, images, labels))
            found["stream"].append(online(network, images, labels, max(SIZES)))
            found["after"].append(top1(network, domain.images[:TESTED], domain.labels[:TESTED]))
        return {**found, "all_before": top1(self.network, domain.images[:TESTED], domain.labels[:TESTED])}

    def _time(self, domain: Domain) -> dict[str, float]:
        """Seconds of a forward pass, and how many times as long re-alignment takes, in turn; at once and in batches."""
        images, network = domain.sample(TIMED, 0), copy.deepcopy(self.network)
        steps = {
            "realign": lambda: realign(network, images),
            "at_once": lambda: logits_of(network, images, len(images)),
            "batches": lambda: logits_of(network, images, BATCH),
        }
        interleave(steps, 1, "cpu")
        seconds = interleave(steps, ROUNDS, "cpu")
        return {name: ratios(seconds["realign"], seconds[name])[0] for name in ("at_once", "batches")}


def read(job: Path) -> Trained:
    """
    Raises:
        UserError: it is no finished run.
    """
    summary = recorded.read_summary(job)
    if summary is None:
        raise UserError(f"{job}: no finished run; expected the job_dir of one")
    network, description, _ = restore(job / "checkpoint" / "last.pt")
    return Trained(job.name, network, base_digest(network), description, summary)


def online(network: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    """Top-1 on a stream of batches of a size, each re-aligning the network, in place, before it is classified."""
    logits = torch.cat([realign(network, part).logits for part in images.split(size)])
    return _top1(logits, labels)


def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return _top1(logits_of(network, images, BATCH), labels)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor, size: int) -> Tensor:
    return torch.cat([class_logits(network, part) for part in images.split(size)])


def _top1(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())


def _some(test: Batches, count: int) -> TensorBatches:
    """As many images, in memory, the same share of every class."""
    return test.held(of_every_class(test.labels, count / test.samples) if count < test.samples else None)


def _corrupted(clean: TensorBatches, corruption: str, seed: int) -> TensorBatches:
    return clean.of(corrupt(clean.image_set, corruption, STRONGEST, seed))


def _domain(name: str, train: TensorBatches, test: TensorBatches) -> Domain:
    return Domain(name, train.sample, test.sample(test.samples), test.labels)
