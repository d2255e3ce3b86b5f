"""--reestimate: BatchNorm statistics of the finished network instead of those that it gathered while it changed."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from common.adaptation import Objective
from common.data.kinds import DOMAINS, RunData, cyclic
from common.engine.evaluation import evaluate
from common.measure.statistics import estimate_statistics, restore_statistics, statistics_of
from common.runs.job import Job


def reestimated(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """Estimate the statistics of the last epoch's network from --reestimate N training batches; evaluate and save it.

    The running averages of training are of networks that are gone; they lag most where rounding makes the network jump
    from step to step (Nagel et al., ICML 2022, arXiv 2203.11086). The batches, N of each domain that is
    trained on and in turn, are those that the epoch after the last would begin with, augmented as in training; whole
    ones also after a training by several processes, so that the statistics do not depend on their number.

    Returns:
        "batches", "epoch" and the means of every test set by name. The network is left as it was; with its new
        statistics it is in ``job.reestimated``.
    """
    options, before = job.options, statistics_of(objective.trained)
    count, epochs = options.training.reestimate, options.training.num_epochs
    try:
        images = _in_turn(data, DOMAINS if objective.adapts else DOMAINS[:1], epochs, count)
        estimate_statistics(objective.trained, images, forward=objective.predict)
        means = {name: evaluate(objective, data, name, job, log=False)[0] for name in data.test}
        job.save_reestimated(objective.network.state_dict(), epochs)
    finally:
        restore_statistics(before)
    tested = next(iter(data.test))
    what = f"{options.demo}{tested + ' ' if options.task.cross else ''}test top-1"
    job.log(f"{what}: {means[tested]['prec1']:.3f} at the last epoch, statistics estimated anew from {count} batches")
    return {"batches": count, "epoch": epochs - 1, **means}


def _in_turn(data: RunData, domains: tuple[str, ...], epoch: int, count: int) -> Iterator[Tensor]:
    """``count`` batches of each domain, one of each at a time."""
    for batches in zip(*(cyclic(data.train[domain].whole(), epoch, count) for domain in domains), strict=True):
        yield from (images for images, _ in batches)
