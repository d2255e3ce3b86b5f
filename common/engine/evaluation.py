"""What a network is worth on a test set."""

import torch
from torch import Tensor

from common.adaptation import Objective
from common.adaptation.base import cross_entropy
from common.data.kinds import DOMAINS, Batches, RunData
from common.engine.meters import Sums, precision
from common.machine import distributed
from common.measure import feature_map
from common.measure.criteria import CRITERIA, criteria_of
from common.runs.job import Job

TAGS = {"loss": "_loss", "prec1": "-top-1", "prec5": "-top-5", "prec1_domain": "-top-1_domain"}
TAGS |= {name: f"-{name}" for name in CRITERIA}


def evaluate(
    objective: Objective, data: RunData, name: str, job: Job, epoch: int = 0, log: bool = True
) -> tuple[dict[str, float], Tensor]:
    """Means of loss, prec1, prec5 and, where domains are told apart, prec1_domain over a test set; (C, C) confusion.

    On the target also the label-free criteria (common.measure.criteria).
    """
    mean, confusion = measure(objective, data.test[name], name)
    if log:
        _report(name, mean, job, epoch)
    return mean, confusion


@torch.no_grad()
def measure(objective: Objective, batches: Batches, domain: str = "") -> tuple[dict[str, float], Tensor]:
    """As ``evaluate``, of any batches, without a line for the log; leaves all that is trained in evaluation mode."""
    objective.trained.eval()
    sums, confusion = Sums(), torch.zeros((), dtype=torch.int64)
    seen: list[Tensor] = []  # the target's logits, for what can be said of them without labels
    for images, labels in distributed.dealt(batches):
        logits, domain_logits = objective.predict(images)
        values = {"loss": cross_entropy(logits, labels), **precision(logits, labels)}
        if domain_logits is not None and domain in DOMAINS:
            truth = labels.new_full((len(labels),), DOMAINS.index(domain))
            values["prec1_domain"] = precision(domain_logits, truth)["prec1"]
        sums.add(len(labels), **values)
        confusion = confusion + feature_map.confusion(logits, labels).cpu()
        seen += [logits.float().cpu()] if domain == "target" else []
    mean = sums.mean()
    if domain == "target":
        mean |= criteria_of(torch.cat([one for process in distributed.gather(seen) for one in process]))
    return mean, sum(distributed.gather(confusion), torch.zeros((), dtype=torch.int64))


def _report(name: str, mean: dict[str, float], job: Job, epoch: int) -> None:
    """The published lines and tags: a domain's behind its name, those of a single test set, or of the target, bare."""
    title = "Test" if name in DOMAINS else name.capitalize()
    tags = {title + TAGS[what]: value for what, value in mean.items()}
    if name in DOMAINS:
        tags = {f"{name}/{tag}": value for tag, value in tags.items()} | (tags if name == "target" else {})
    job.scalars("test", tags, epoch + 1)
    accuracy = f"Prec@1 {mean['prec1']:.3f} Prec@5 {mean['prec5']:.3f}"
    if name not in DOMAINS:
        job.log(f"{accuracy}{'' if name == 'test' else f' [{name}]'}\n" + "=" * 47 + "\n")
        return
    lines = [name, f"{accuracy} (Image)"]
    lines += [f"Prec@1 {mean['prec1_domain']:.3f} (Domain)"] if "prec1_domain" in mean else []
    job.log("\n".join([*lines, "=" * 55, ""]))
