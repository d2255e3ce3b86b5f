"""Whole runs in this process, on a few synthetic images: all but the data is the program's own."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.tasks import Task
from common.data.images import ImageSet
from common.data.kinds import DATA, DOMAINS, Batching, RunData
from common.data.tensors import TensorBatches
from common.engine import program
from common.engine.trainer import Trainer
from common.measure import feature_map

CLASSES = ("0", "1", "2", "3")
TASKS = {
    "single": Task("resnet20", Path("single_domain/resnet20"), "resnet20_quant", stem="res20"),
    "digits": Task(
        "dann_digits",
        Path("cross_domain/dann_digits/daq_crp"),
        "MNISTmodel_quant",
        data="digits",
        objective="dann",
        crp=True,
        defaults={"src_data": "mnist", "tgt_data": "mnistm"},
    ),
    "office": Task(
        "dann_office",
        Path("cross_domain/dann_office/cdf_alignment"),
        "resnet50_dann",
        data="office",
        objective="dann",
        defaults={"src_data": "amazon", "tgt_data": "webcam"},
    ),
}


def images(name: str, count: int, brighter: int = 0, side: int = 16) -> ImageSet:
    """Noise with a bright bar whose place is the class; a name is a draw."""
    pixels = torch.randint(0, 100, (count, 3, side, side), generator=torch.Generator().manual_seed(sum(map(ord, name))))
    labels = torch.arange(count) % len(CLASSES)
    width = side // len(CLASSES)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, label * width : (label + 1) * width] += 100
    return ImageSet((pixels + brighter).to(torch.uint8), labels, CLASSES, name)


class Small(nn.Module):
    """A network with all that programs ask for: a backbone of one convolution, a classifier and a discriminator."""

    feature_width = 8

    def __init__(self) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten())
        self.classifier, self.discriminator = nn.Linear(8, len(CLASSES)), nn.Linear(8, 2)

    def backbone(self) -> nn.Module:
        return self.feature

    def features(self, x: Tensor) -> Tensor:
        return self.feature(x)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def discriminate(self, features: Tensor) -> Tensor:
        return self.discriminator(features)


@dataclasses.dataclass
class Lab:
    """``run`` is a program's run; what it trains on may be set before, what it made is there afterwards.

    Attributes:
        train, test: the sets by domain; those of a single domain are "source" and "test", "val".
        small: let the network be ``Small`` instead of the task's own.
        trainer: of the last run; None after --test_only.
    """

    folder: Path
    train: dict[str, ImageSet]
    test: dict[str, ImageSet]
    small: bool = False
    trainer: Any = None

    def run(self, task: str, *words: object, job: str = "job") -> dict[str, Any]:
        """Batches of 8; returns the summary."""
        common = ["--train_batch_size", 8, "--test_batch_size", 7, "--job_dir", self.folder / job, "--bitW", 32]
        common += ["--device", "cpu"]
        if task != "single":  # over the tables' rows
            common += ["--img_size", 16, "--lr_decay_steps", "[]", "--alpha", 0]
        return program.run(TASKS[task], [str(word) for word in (*common, *words)])

    def checkpoint(self, name: str = "last.pt", job: str = "job") -> dict[str, Any]:
        return torch.load(self.folder / job / "checkpoint" / name, weights_only=True)

    def data(self, domains: bool, batching: Batching) -> RunData:
        def batches(image_set: ImageSet, domain: str, train: bool) -> TensorBatches:
            size = batching.train if train else batching.test
            settings: dict[str, Any] = {"shuffle": train, "drop_last": train, "seed": batching.seed, "domain": domain}
            settings |= {"share": batching.share} if train else {}
            return TensorBatches(image_set=image_set, batch_size=size, mean=0.5, std=0.5, **settings)

        names = DOMAINS if domains else DOMAINS[:1]
        tests = ("target", "source") if domains else ("test", "val")
        return RunData(
            {name: batches(self.train[name], name, True) for name in names},
            {name: batches(self.test[name], name, False) for name in tests if name in self.test},
            CLASSES,
            "synthetic",
        )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def make_lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    sets = {"source": images("source", 16), "target": images("target", 16, brighter=40)}
    tests = {"source": images("st", 20), "target": images("tt", 20, brighter=40)}
    lab = Lab(folder, sets, tests | {"test": images("single", 20)})

    class Kept(Trainer):
        def __init__(self, *arguments: Any) -> None:
            lab.trainer = self
            super().__init__(*arguments)

    make_network = program.make_network
    monkeypatch.setattr(program, "Trainer", Kept)
    monkeypatch.setattr(program, "make_network", lambda *given: Small() if lab.small else make_network(*given))
    for kind in list(DATA.values()):
        fake = dataclasses.replace(kind, load=lambda options, batching, kind=kind: lab.data(kind.domains, batching))
        monkeypatch.setitem(DATA, kind.name, fake)
    for picture in ("draw", "draw_confusions"):  # the slowest part of a run
        monkeypatch.setattr(feature_map, picture, lambda *given: None)
    return lab
