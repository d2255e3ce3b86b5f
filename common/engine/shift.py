"""What a network is worth on corrupted images (``--shift``), as it is and re-aligned by others with that corruption."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from common.adaptation import Objective
from common.data import cifar10c
from common.data.corruptions import STRENGTHS, corrupt
from common.data.images import drawn, of_every_class
from common.data.kinds import RunData
from common.data.kinds.cifar10 import PUBLISHED, published_corruptions
from common.data.tensors import TensorBatches
from common.engine.evaluation import measure
from common.engine.realignment import realigned
from common.runs.job import Job

Pairs = Iterator[
    tuple[str, list[tuple[TensorBatches, TensorBatches | None]]]
]  # by kind, for each strength: tested, adapted to


def evaluate_shifted(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """Top-1 on corrupted test images: {corruption: [at each of its strengths], "mean": over all of them, "images": N}.

    --shift_images N takes a sample of N, the same share of every class and the same for every network. With --adapt bn
    also "adapted", the same of the re-aligned network. Of CIFAR-10-C, "mean" is over the fifteen kinds, and "mce" is
    the mean corruption error as its papers report it, 100 - "mean" (in per cent, not divided by another network's).
    """
    options = job.options
    published = options.data.shift == PUBLISHED
    plain: dict[str, Any] = {}
    adapted: dict[str, Any] = {}
    images = 0
    for kind, pairs in _published(data, job) if published else _own(data, job):
        plain[kind], adapted[kind] = [], []
        for tested, others in pairs:
            images = len(tested.labels)
            plain[kind].append(measure(objective, tested)[0]["prec1"])
            if others is not None:
                with realigned(objective, others.sample(len(others.labels)), job):
                    adapted[kind].append(measure(objective, tested)[0]["prec1"])
        _log(kind, plain[kind], job)
        _log(f"{kind}, re-aligned", adapted[kind], job)
    result = {**plain, **_means(plain, published), "images": images}
    if options.realignment.adapt != "none":
        counts = {"images": options.realignment.adapt_images, "prior": options.realignment.adapt_prior}
        result["adapted"] = {**adapted, **_means(adapted, published), **counts}
    return result


def _own(data: RunData, job: Job) -> Pairs:
    """The project's own corruptions, of the test set; adapted to are training images."""
    test, train, options = data.test["test"], data.train["source"], job.options.realignment
    clean = test.held(_chosen(test.labels, job))
    others = None if options.adapt == "none" else train.held(drawn(options.adapt_images, len(train.labels)))
    for kind, strengths in STRENGTHS.items():
        levels = range(1, len(strengths) + 1)
        tested = [_corrupted(clean, kind, n) for n in levels]
        adapted_to = [None if others is None else _corrupted(others, kind, n, seed=1) for n in levels]
        yield kind, list(zip(tested, adapted_to, strict=True))


def _corrupted(clean: TensorBatches, kind: str, level: int, seed: int = 0) -> TensorBatches:
    return clean.of(corrupt(clean.image_set, kind, level, seed))


def _published(data: RunData, job: Job) -> Pairs:
    """CIFAR-10-C; adapted to are some of its images, which are then not tested on."""
    folder, options = published_corruptions(job.options.data), job.options.realignment
    test = data.test["test"].held()
    for kind in (*cifar10c.KINDS, *cifar10c.EXTRA):
        pairs: list[tuple[TensorBatches, TensorBatches | None]] = []
        for whole in cifar10c.load(folder, kind):
            places = drawn(0 if options.adapt == "none" else options.adapt_images, len(whole))
            rest = whole.subset(sorted(set(range(len(whole))) - set(places.tolist())))
            tested = test.of(rest.subset(_chosen(rest.labels, job)))
            pairs.append((tested, test.of(whole.subset(places)) if len(places) else None))
        yield kind, pairs


def _chosen(labels: Tensor, job: Job) -> Tensor:
    """The places of those that --shift_images tests on."""
    wanted = job.options.data.shift_images
    return of_every_class(labels, wanted / len(labels)) if 0 < wanted < len(labels) else torch.arange(len(labels))


def _means(found: dict[str, list[float]], published: bool) -> dict[str, float]:
    kinds = [kind for kind in found if not published or kind in cifar10c.KINDS]
    every = [value for kind in kinds for value in found[kind]]
    mean = sum(every) / len(every)
    return {"mean": mean, "mce": 100 - mean} if published else {"mean": mean}


def _log(what: str, values: list[float], job: Job) -> None:
    if values:
        job.log(f"{job.options.demo}test top-1 under {what}: {', '.join(f'{value:.3f}' for value in values)}")
