"""What a run leaves behind: its result by best and last epoch, the levels of every layer, and pictures."""

from dataclasses import asdict
from typing import Any

import numpy as np

from common.adaptation import Objective, offsets
from common.data.kinds import RunData
from common.data.kinds.cifar10 import NONE
from common.engine.ending import lines_of
from common.engine.evaluation import evaluate
from common.engine.realignment import evaluate_realigned, know_offsets
from common.engine.reestimation import reestimated
from common.engine.shift import evaluate_shifted
from common.measure import effective_bits, feature_map, relation_error
from common.measure.coverage import coverage
from common.runs import checkpoint
from common.runs.job import FEATURES_BEFORE, Job

Values = dict[str, Any]
LOOKED_AT = {True: 16, False: 32}  # images by which levels are counted, with a target domain and without


def finish(objective: Objective, data: RunData, job: Job, best: dict[str, Any]) -> dict[str, Any]:
    """Log and record the result, and write summary.json; the network is that of the best epoch afterwards."""
    options, network = job.options, objective.network
    tested = next(iter(data.test))
    images = next(iter(data.test[tested]))[0][: LOOKED_AT[options.task.cross]]
    levels = effective_bits.measure(network, images)
    relations = relation_error.measure(network, images)
    for line in effective_bits.summary_lines(levels) if options.quantization.bits != 32 else []:
        job.detail(line)
    covered = coverage(network, images[:1])
    job.detail(covered.line())
    for line in covered.lines() if options.run.float_names else []:
        job.log(line)
    last = job.history()[-1]
    confusions = {"last": evaluate(objective, data, tested, job, log=False)[1]}
    confusions["best"] = confusions["last"]
    moved = {offsets.KEY: know_offsets(network, data, objective.adapts)}
    job.add(job.last, **moved)
    anew = {"reestimated": reestimated(objective, data, job)} if options.training.reestimate else {}
    if best["epoch"] < options.training.num_epochs - 1:
        network.load_state_dict(checkpoint.weights_of(checkpoint.read(job.best), job.best))
        confusions["best"] = evaluate(objective, data, tested, job, log=False)[1]
        moved = {offsets.KEY: know_offsets(network, data, objective.adapts)}
    job.add(job.best, **moved)
    summary = {
        "task": options.task.name,
        "model": options.quantization.model,
        "method": options.quantization.method,
        "bitW": options.quantization.bitW,
        "abitW": options.quantization.abitW,
        "seed": options.run.seed,
        "demo": options.data.demo,
        "protocol": data.protocol,
        "selected_by": options.data.select,
        **(_of_two_domains if options.task.cross else _of_one_domain)(objective, job, best, last),
        **anew,
        "training": {
            "epochs": options.training.num_epochs,
            "schedule": options.training.schedule,
            "teacher": job.teacher,
        },
        "source_file_warning": job.split_seen,
        "per_class": {when: feature_map.per_class(counts, data.classes) for when, counts in confusions.items()},
        "confusion": {when: counts.tolist() for when, counts in confusions.items()},
        "classes": list(data.classes),
        "relation_error": relations,
        "layers": [entry.row() for entry in levels],
        "coverage": asdict(covered),
    }
    summary |= _further(objective, data, job)  # of the best epoch's network
    job.write_json("summary.json", summary)
    if options.task.cross:
        _draw(objective, data, job, confusions)
    for line in (ending := lines_of(options, summary, levels, covered, job.best)):
        job.detail(line)
    print("\n".join(["", *ending]), flush=True)
    return summary


def _of_one_domain(objective: Objective, job: Job, best: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    options = job.options
    job.detail(f"Best @prec1: {best['judged']:.3f} @prec5: {best['test']['prec5']:.3f}")
    return {
        "best": {"epoch": best["epoch"], "test_prec1": best["test"]["prec1"]},
        "last": {"epoch": options.training.num_epochs - 1, "test_prec1": last["test"]["prec1"]},
    }


def _of_two_domains(objective: Objective, job: Job, best: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    options = job.options
    assert options.pair is not None
    for domain in ("target", "source"):
        found = best[domain]
        job.detail(f"Best @prec1: {found['prec1']:.3f} @prec5: {found['prec5']:.3f} [{domain.capitalize()} class]")
    return {
        "crp": objective.crp is not None and objective.crp.weight > 0,
        "pair": list(options.pair),
        "adaptation": objective.name,
        "source_only": not objective.adapts,
        "best": {key: best[key] for key in ("epoch", "target", "source")},
        "last": {"epoch": options.training.num_epochs - 1, "target": last["target"], "source": last["source"]},
        "relation_shift": last.get("relation_shift"),
    }


def _draw(objective: Objective, data: RunData, job: Job, confusions: dict[str, Any]) -> None:
    """features.png, of before training too where that is known, and confusion.png."""
    options = job.options
    assert options.pair is not None
    source, target = options.pair
    after = feature_map.collect(objective.network, data.test)
    feature_map.save(after, job.folder / "features_after.npz")
    pictures = {"after training": after}
    if (job.folder / FEATURES_BEFORE).exists():
        with np.load(job.folder / FEATURES_BEFORE) as before:
            pictures = {"before training": dict(before), **pictures}
    title = f"{options.demo}{source} (o) -> {target} (x), {options.quantization.bitW}-bit weights"
    feature_map.draw(pictures, job.folder / "features.png", title)
    titles = {f"{options.demo}{target}, {when} epoch": counts.tolist() for when, counts in confusions.items()}
    feature_map.draw_confusions(titles, data.classes, job.folder / "confusion.png")
    job.detail(f"pictures: {job.folder / 'features.png'}, {job.folder / 'confusion.png'}")


def _further(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """What --shift and --adapt ask for."""
    options, found = job.options, {}
    if not options.task.cross and options.data.shift != NONE:
        found["shift"] = evaluate_shifted(objective, data, job)
    if options.realignment.adapt != "none":
        found["adapted"] = evaluate_realigned(objective, data, job)
    return found


def test_only(objective: Objective, data: RunData, job: Job) -> dict[str, Any]:
    """Evaluate once on every test set, and with --shift on corruptions; writes test.json."""
    options = job.options
    result: dict[str, Any] = {name: evaluate(objective, data, name, job)[0] for name in data.test}
    for name, mean in result.items():
        what = name if options.task.cross or name != "test" else ""
        job.log(
            f"{options.demo}{what + ' ' if what else ''}test top-1: {mean['prec1']:.3f} top-5: {mean['prec5']:.3f}; "
            f"{data.protocol}"
        )
    result |= _further(objective, data, job)
    job.write_json("test.json", result | {"source_file_warning": job.split_seen})
    return result
