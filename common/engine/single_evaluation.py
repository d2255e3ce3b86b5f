"""What a single-domain run reports: accuracy on a set, on corrupted images, and the result."""

import argparse
from typing import Any

import torch
from torch import Tensor, nn

from common.data.corruptions import STRENGTHS, corrupt
from common.data.single_domain import make_batches
from common.data.tensors import TensorBatches
from common.engine.meters import Sums, cross_entropy, precision
from common.machine import distributed
from common.measure import effective_bits, feature_map, relation_error
from common.runs import checkpoint
from common.runs.job import Job


def evaluate(model: nn.Module, batches: TensorBatches, job: Job, epoch: int, split: str = "test") -> dict[str, float]:
    """Means of loss, prec1 and prec5 over a set, logged; the model is in evaluation mode meanwhile."""
    mean = means_over(model, batches)
    name = split.capitalize()
    tags = {f"{name}_loss": mean["loss"], f"{name}-top-1": mean["prec1"], f"{name}-top-5": mean["prec5"]}
    job.scalars("test", tags, epoch + 1)
    label = "" if split == "test" else f" [{split}]"
    job.log(f"Prec@1 {mean['prec1']:.3f} Prec@5 {mean['prec5']:.3f}{label}\n" + "=" * 47 + "\n")
    return mean


@torch.no_grad()
def means_over(model: nn.Module, batches: TensorBatches) -> dict[str, float]:
    model.eval()
    sums = Sums()
    for images, labels in distributed.dealt(batches):
        logits = model(images)
        sums.add(len(labels), loss=cross_entropy(logits, labels), **precision(logits, labels))
    return sums.mean()


@torch.no_grad()
def confusion_over(model: nn.Module, batches: TensorBatches) -> Tensor:
    """(C, C) counts over a set, rows the true class."""
    model.eval()
    return torch.stack([feature_map.confusion(model(images), labels).cpu() for images, labels in batches]).sum(0)


def evaluate_shifted(model: nn.Module, test: TensorBatches, job: Job) -> dict[str, Any]:
    """Top-1 on corrupted test images: {corruption: [at each of its strengths], "mean": over all of them, "images": N}.

    --shift_images N takes a sample of N, the same share of every class and the same for every network.
    """
    clean, wanted = test.image_set, job.options.shift_images
    if 0 < wanted < len(clean):
        clean = clean.split(wanted / len(clean), seed=0)[1]
    top1: dict[str, list[float]] = {}
    for kind, strengths in STRENGTHS.items():
        levels = range(1, len(strengths) + 1)
        sets = (make_batches(corrupt(clean, kind, n), "test", job.options, test.device) for n in levels)
        top1[kind] = [means_over(model, batches)["prec1"] for batches in sets]
        values = ", ".join(f"{value:.3f}" for value in top1[kind])
        job.log(f"{'demo ' if job.options.demo else ''}test top-1 under {kind} {strengths}: {values}")
    every = [value for values in top1.values() for value in values]
    return {**top1, "mean": sum(every) / len(every), "images": len(clean)}


def finish(
    model: nn.Module, data: dict[str, TensorBatches], options: argparse.Namespace, job: Job, best: dict
) -> dict[str, Any]:
    """Log and record the result: best and last epoch, by which rule, per class, and the levels of every layer."""
    images: Tensor = next(iter(data["test"]))[0][:32]
    levels = effective_bits.measure(model, images)
    relations = relation_error.measure(model, images)
    for line in effective_bits.summary_lines(levels) if options.bits != 32 else []:
        job.log(line)
    last = job.history()[-1]["test"]
    demo = "demo " if options.demo else ""
    job.log(f"Best @prec1: {best['prec1']:.3f} @prec5: {best['prec5']:.3f}")
    job.log(
        f"{demo}test top-1: {best['test_prec1']:.3f} at epoch {best['epoch']} (selected by {options.select}), "
        f"{last['prec1']:.3f} at the last epoch"
    )
    classes = data["test"].image_set.classes
    confusions = {"last": confusion_over(model, data["test"])}
    confusions["best"] = confusions["last"]
    if best["epoch"] < options.num_epochs - 1:
        model.load_state_dict(checkpoint.weights_of(checkpoint.read(job.best), job.best))
        confusions["best"] = confusion_over(model, data["test"])
    summary = {
        "task": job.task.name,
        "model": options.model,
        "method": options.method,
        "bitW": options.bitW,
        "abitW": options.abitW,
        "seed": options.seed,
        "demo": options.demo,
        "selected_by": options.select,
        "best": {"epoch": best["epoch"], "test_prec1": best["test_prec1"]},
        "last": {"epoch": options.num_epochs - 1, "test_prec1": last["prec1"]},
        "per_class": {when: feature_map.per_class(counts, classes) for when, counts in confusions.items()},
        "confusion": {when: counts.tolist() for when, counts in confusions.items()},
        "classes": list(classes),
        "relation_error": relations,
        "layers": [entry.row() for entry in levels],
    }
    if options.shift:  # of the best epoch's network, which the model now is
        summary["shift"] = evaluate_shifted(model, data["test"], job)
    job.write_json("summary.json", summary)
    return summary


def test_only(model: nn.Module, data: dict[str, TensorBatches], job: Job) -> dict[str, Any]:
    """Evaluate once on the test set, and with --shift on its corruptions; writes test.json."""
    mean = evaluate(model, data["test"], job, 0)
    job.log(f"{'demo ' if job.options.demo else ''}test top-1: {mean['prec1']:.3f} top-5: {mean['prec5']:.3f}")
    result: dict[str, Any] = {"test": mean}
    if job.options.shift:
        result["shift"] = evaluate_shifted(model, data["test"], job)
    job.write_json("test.json", result)
    return result
