"""What a network is worth once it has the statistics of a domain (``--adapt bn``)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation import Objective, offsets
from common.adaptation.realign import realign, refuse_few
from common.config.options import Options
from common.data import cifar10c
from common.data.kinds import RunData
from common.data.kinds.cifar10 import PUBLISHED
from common.engine.evaluation import evaluate
from common.errors import UserError
from common.measure.statistics import restore_statistics, statistics_of
from common.runs.job import Job


def check(options: Options) -> None:
    """
    Raises:
        UserError: images too few for no prior, or all that CIFAR-10-C has.
    """
    wanted = options.realignment
    if wanted.adapt == "none":
        return
    refuse_few(wanted.adapt_images, wanted.adapt_prior)
    if not options.task.cross and options.data.shift == PUBLISHED and wanted.adapt_images >= cifar10c.IMAGES:
        raise UserError(
            f"--adapt_images {wanted.adapt_images}: expected fewer than the {cifar10c.IMAGES} of CIFAR-10-C, which are "
            "tested on too"
        )


def know_offsets(network: nn.Module, data: RunData, adapts: bool) -> offsets.Offsets:
    """Let a network know how its statistics are off those of the images that it is trained on.

    Args:
        adapts: whether these are of the target too.
    """
    domains = [data.train[name] for name in (("source", "target") if adapts else ("source",))]
    images = torch.cat([domain.sample(offsets.IMAGES // len(domains), seed=1) for domain in domains])
    found = offsets.measure(network, images)
    offsets.attach(network, found)
    return found


@contextmanager
def realigned(objective: Objective, images: Tensor, job: Job) -> Iterator[None]:
    """Within it, the network is re-aligned by the images as ``--adapt_prior`` says; behind it, it is as it was."""
    before = statistics_of(objective.network)
    try:
        if warning := realign(objective.network, images, job.options.realignment.adapt_prior).warning():
            job.log(warning)
        yield
    finally:
        restore_statistics(before)


def evaluate_realigned(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """Means over each test set, re-aligned by images of the same domain that are trained on: {set: means, "images",
    "prior"}.
    """
    options = job.options.realignment
    found: dict[str, Any] = {"images": options.adapt_images, "prior": options.adapt_prior}
    for name in data.test:
        images = data.train.get(name, data.train["source"]).sample(options.adapt_images)
        with realigned(objective, images, job):
            found[name] = evaluate(objective, data, name, job, log=False)[0]
        what = "" if name == "test" else f"{name} "
        job.log(
            f"{job.options.demo}{what}test top-1, re-aligned by {len(images)} training images: "
            f"{found[name]['prec1']:.3f}"
        )
    return found
