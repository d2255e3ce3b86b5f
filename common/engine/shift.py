"""What a network is worth on corrupted images (``--shift``), as it is and re-aligned by others with that corruption."""

from collections.abc import Iterator
from typing import Any

from common.adaptation import Objective
from common.data import cifar10c
from common.data.corruptions import STRENGTHS, corrupt
from common.data.kinds import RunData
from common.data.kinds.cifar10 import PUBLISHED, published_corruptions
from common.data.tensors import ImageSet, drawn
from common.engine.evaluation import measure
from common.engine.realignment import realigned
from common.runs.job import Job

Pairs = Iterator[tuple[str, list[tuple[ImageSet, ImageSet | None]]]]  # by kind, for each strength: tested, adapted to


def evaluate_shifted(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """Top-1 on corrupted test images: {corruption: [at each of its strengths], "mean": over all of them, "images": N}.

    --shift_images N takes a sample of N, the same share of every class and the same for every network. With --adapt bn
    also "adapted", the same of the re-aligned network. Of CIFAR-10-C, "mean" is over the fifteen kinds, and "mce" is
    the mean corruption error as its papers report it, 100 - "mean" (in per cent, not divided by another network's).
    """
    options = job.options
    test: Any = data.test["test"]
    published = options.data.shift == PUBLISHED
    plain: dict[str, Any] = {}
    adapted: dict[str, Any] = {}
    images = 0
    for kind, pairs in _published(job) if published else _own(data, job):
        plain[kind], adapted[kind] = [], []
        for tested, others in pairs:
            images, batches = len(tested), test.of(tested)
            plain[kind].append(measure(objective, batches)[0]["prec1"])
            if others is not None:
                with realigned(objective, test.of(others).sample(len(others)), job):
                    adapted[kind].append(measure(objective, batches)[0]["prec1"])
        _log(kind, plain[kind], job)
        _log(f"{kind}, re-aligned", adapted[kind], job)
    result = {**plain, **_means(plain, published), "images": images}
    if options.realignment.adapt != "none":
        counts = {"images": options.realignment.adapt_images, "prior": options.realignment.adapt_prior}
        result["adapted"] = {**adapted, **_means(adapted, published), **counts}
    return result


def _own(data: RunData, job: Job) -> Pairs:
    """The project's own corruptions, of the test set; adapted to are training images."""
    test: Any = data.test["test"]
    train: Any = data.train["source"]
    clean, count = _sampled(test.image_set, job), job.options.realignment.adapt_images
    others = train.image_set.subset(drawn(count, len(train.image_set)))
    adapts = job.options.realignment.adapt != "none"
    for kind, strengths in STRENGTHS.items():
        levels = range(1, len(strengths) + 1)
        yield kind, [(corrupt(clean, kind, n), corrupt(others, kind, n, seed=1) if adapts else None) for n in levels]


def _published(job: Job) -> Pairs:
    """CIFAR-10-C; adapted to are some of its images, which are then not tested on."""
    folder = published_corruptions(job.options.data)
    options = job.options.realignment
    for kind in (*cifar10c.KINDS, *cifar10c.EXTRA):
        pairs: list[tuple[ImageSet, ImageSet | None]] = []
        for whole in cifar10c.load(folder, kind):
            if options.adapt == "none":
                pairs.append((_sampled(whole, job), None))
                continue
            places = drawn(options.adapt_images, len(whole))
            rest = sorted(set(range(len(whole))) - set(places.tolist()))
            pairs.append((_sampled(whole.subset(rest), job), whole.subset(places)))
        yield kind, pairs


def _sampled(images: ImageSet, job: Job) -> ImageSet:
    wanted = job.options.data.shift_images
    return images.split(wanted / len(images), seed=0)[1] if 0 < wanted < len(images) else images


def _means(found: dict[str, list[float]], published: bool) -> dict[str, float]:
    kinds = [kind for kind in found if not published or kind in cifar10c.KINDS]
    every = [value for kind in kinds for value in found[kind]]
    mean = sum(every) / len(every)
    return {"mean": mean, "mce": 100 - mean} if published else {"mean": mean}


def _log(what: str, values: list[float], job: Job) -> None:
    if values:
        job.log(f"{job.options.demo}test top-1 under {what}: {', '.join(f'{value:.3f}' for value in values)}")
