"""What a cross-domain network is worth on both test sets, and the record that a run leaves."""

from typing import Any

import numpy as np
import torch

from common.adaptation.objectives import Objective
from common.data.cross_domain import DOMAINS, Batches, CrossData
from common.engine.meters import Sums, cross_entropy, precision
from common.machine import distributed
from common.measure import effective_bits, feature_map, relation_error
from common.runs import checkpoint
from common.runs.job import Job


@torch.no_grad()
def evaluate(
    objective: Objective, batches: Batches, job: Job, epoch: int, domain: str, log: bool = True
) -> tuple[dict[str, float], torch.Tensor]:
    """Means of loss, prec1, prec5 and, with a discriminator, prec1_domain over a test set, and its confusion matrix."""
    objective.model.eval()
    sums, confusion = Sums(), torch.zeros((), dtype=torch.int64)
    for images, labels in distributed.dealt(batches):
        logits, domain_logits = objective.predict(images)
        values = {"loss": cross_entropy(logits, labels), **precision(logits, labels)}
        if domain_logits is not None:
            truth = labels.new_full((len(labels),), DOMAINS.index(domain))
            values["prec1_domain"] = precision(domain_logits, truth)["prec1"]
        sums.add(len(labels), **values)
        confusion = confusion + feature_map.confusion(logits, labels).cpu()
    mean, confusion = sums.mean(), sum(distributed.gather(confusion), torch.zeros((), dtype=torch.int64))
    if log:
        tags = {"loss": "Test_loss", "prec1": "Test-top-1", "prec5": "Test-top-5", "prec1_domain": "Test-top-1_domain"}
        for key, tag in tags.items():
            if key in mean:
                own = {f"{domain}/{tag}": mean[key]} | ({tag: mean[key]} if domain == "target" else {})
                job.scalars("test", own, epoch + 1)
        lines = [domain, f"Prec@1 {mean['prec1']:.3f} Prec@5 {mean['prec5']:.3f} (Image)"]
        lines += [f"Prec@1 {mean['prec1_domain']:.3f} (Domain)"] if "prec1_domain" in mean else []
        job.log("\n".join([*lines, "=" * 55, ""]))
    return mean, confusion


def finish(objective: Objective, data: CrossData, job: Job, best: dict[str, Any]) -> dict[str, Any]:
    """Record the result: best and last epoch, by which rule and protocol, per class; levels; pictures."""
    options, model = job.options, objective.model
    images = next(iter(data.test["target"]))[0][:16]
    alpha = () if job.task.kind == "dsan" else (0.0,)
    levels = effective_bits.measure(model, images, *alpha)
    relations = relation_error.measure(model, images, *alpha)
    for line in effective_bits.summary_lines(levels) if options.bits != 32 else []:
        job.log(line)
    last = job.history()[-1]
    confusions = {"last": evaluate(objective, data.test["target"], job, 0, "target", log=False)[1]}
    confusions["best"] = confusions["last"]
    if best["epoch"] < options.num_epochs - 1:
        model.load_state_dict(checkpoint.weights_of(checkpoint.read(job.best), job.best))
        confusions["best"] = evaluate(objective, data.test["target"], job, 0, "target", log=False)[1]
    per_class = {when: feature_map.per_class(counts, data.classes) for when, counts in confusions.items()}
    demo = "demo " if options.demo else ""
    source, target = options.pair
    for domain, name in (("target", "Target"), ("source", "Source")):
        job.log(f"Best @prec1: {best[domain]['prec1']:.3f} @prec5: {best[domain]['prec5']:.3f} [{name} class]")
    job.log(
        f"{demo}{source} -> {target}, target test top-1: {best['target']['prec1']:.3f} at epoch {best['epoch']} "
        f"(selected by {options.select}{', which reads target labels' if options.select == 'target' else ''}), "
        f"{last['target']['prec1']:.3f} at the last epoch; protocol: {data.protocol}"
    )
    summary = {
        "task": job.task.name,
        "crp": objective.crp is not None and options.crp_weight > 0,
        "model": options.model,
        "method": options.method,
        "bitW": options.bitW,
        "abitW": options.abitW,
        "pair": list(options.pair),
        "source_only": options.src_only_flag,
        "seed": options.seed,
        "demo": options.demo,
        "protocol": data.protocol,
        "selected_by": options.select,
        "best": {key: best[key] for key in ("epoch", "target", "source")},
        "last": {"epoch": options.num_epochs - 1, "target": last["target"], "source": last["source"]},
        "relation_shift": last.get("relation_shift"),
        "relation_error": relations,
        "per_class": per_class,
        "confusion": {when: counts.tolist() for when, counts in confusions.items()},
        "classes": list(data.classes),
        "layers": [entry.row() for entry in levels],
    }
    job.write_json("summary.json", summary)
    with np.load(job.folder / "features_before.npz") as before:
        after = feature_map.collect(model, data)
        feature_map.save(after, job.folder / "features_after.npz")
        title = f"{demo}{source} (o) -> {target} (x), {options.bitW}-bit weights"
        feature_map.draw(dict(before), after, job.folder / "features.png", title)
    titles = {f"{demo}{target}, {when} epoch": counts.tolist() for when, counts in confusions.items()}
    feature_map.draw_confusions(titles, data.classes, job.folder / "confusion.png")
    job.log(f"pictures: {job.folder / 'features.png'}, {job.folder / 'confusion.png'}")
    return summary


def test_only(objective: Objective, data: CrossData, job: Job) -> dict[str, Any]:
    """Evaluate once on both test sets."""
    demo = "demo " if job.options.demo else ""
    means = {domain: evaluate(objective, data.test[domain], job, 0, domain)[0] for domain in ("target", "source")}
    for domain, mean in means.items():
        job.log(f"{demo}{domain} test top-1: {mean['prec1']:.3f} top-5: {mean['prec5']:.3f}; {data.protocol}")
    return means
