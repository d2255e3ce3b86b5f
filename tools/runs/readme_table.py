"""Results in the layout of the README's tables, beside published float figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.tasks import Task
from common.quantizers.rounding import FLOAT_BITS
from tools.runs.anchors import ANCHORS, Anchor
from tools.runs.table_rows import label
from tools.runs.table_runs import PARTS, TableRun

TITLES = {
    "resnet20": "ResNet-20 on CIFAR-10",
    "resnet56": "ResNet-56 on CIFAR-10",
    "densenet40": "DenseNet-40 on CIFAR-10",
    "dann_digits": "DANN (VGG-2) on digits",
    "dann_office": "DANN (ResNet-50) on Office-31",
    "dsan_office": "DSAN (ResNet-50) on Office-31",
}


def accuracy(summary: dict[str, Any], when: str) -> tuple[float, int]:
    """(top-1 of the test set, or of the target's; epoch counted from 1) at the "best" or the "last" epoch."""
    entry = summary[when]
    return entry["target"]["prec1"] if "target" in entry else entry["test_prec1"], entry["epoch"] + 1


def result(run: TableRun, folder: Path) -> dict[str, Any] | None:
    """A finished run as a line of results.jsonl."""
    summary = run.summary(folder)
    if summary is None:
        return None
    (best, best_epoch), (last, last_epoch) = accuracy(summary, "best"), accuracy(summary, "last")
    return {
        "cell": run.name,
        "task": run.task.name,
        "row": label(run.row),
        "bits": run.bits,
        "source": run.source.name if run.source else (str(run.file) if run.file else None),
        "parts": list(run.parts),
        "seed": summary["seed"],
        "demo": summary["demo"],
        "protocol": summary.get("protocol", "the training set for training, the test set for test"),
        "selected_by": summary["selected_by"],
        "best": {"epoch": best_epoch, "top1": best},
        "last": {"epoch": last_epoch, "top1": last},
    }


def markdown(
    task: Task, runs: Sequence[TableRun], results: dict[str, dict[str, Any]], demo: bool, budget: str = ""
) -> str:
    """The table of one task.

    Args:
        runs: its rows, in the order of planning. results: those of finished runs by name; the others get a dash.
        budget: for the title, what the runs spent where that is not the paper's.
    """
    single = not task.cross
    word = "demo " if demo else ""
    what = f"{word}{'top-1' if single else 'target top-1'} (%)"
    columns = ["Model" if single else "Data", "Bit-width", "Pretrained Bit-width", *PARTS.values()]
    columns += [f"{what}, last epoch", f"{what}, best epoch", "published, on the real data" if demo else "published"]
    aligned = ["---", *[":---:"] * (len(columns) - 4), "---:", "---:", "---"]
    lines = [f"# {TITLES[task.name]}{': demo data, not the benchmark' if demo else ''}{budget}", "", about(results), ""]
    lines += [f"| {' | '.join(columns)} |", f"|{'|'.join(aligned)}|"]
    cited: list[Anchor] = []
    order = list(dict.fromkeys(label(run.row) for run in runs))
    for run in sorted(runs, key=lambda run: order.index(label(run.row))):
        found = results.get(run.name)
        accuracies = [_accuracy(found[when]) if found else "–" for when in ("last", "best")]
        pretrained = _pretrained(run)
        marks = ["V" if part in run.parts else "" for part in PARTS]
        matching = [a for a in ANCHORS if (a.task, a.row, a.bits) == (task.name, label(run.row), run.bits)]
        cited += matching
        published = "; ".join(f"{a.what} {a.top1} [{_number(a, cited)}]" for a in matching)
        cells = [label(run.row), str(run.bits), pretrained, *marks, *accuracies, published]
        lines.append(f"| {' | '.join(cells)} |")
    sources = list(dict.fromkeys((a.source, a.protocol) for a in cited))
    notes = [f"- [{i}] {source}: {protocol}." for i, (source, protocol) in enumerate(sources, start=1)]
    return "\n".join([*lines, "", *([PUBLISHED, "", *notes] if notes else [NONE_FOUND])]) + "\n"


PUBLISHED = "Published figures are of other code and of its own protocol, and none is AlignQ's:"
NONE_FOUND = "No published figure that these rows could be set beside was found."


def about(results: dict[str, dict[str, Any]]) -> str:
    """The protocol of the runs, in a line."""
    if not results:
        return "No run is finished."
    every = results.values()
    protocol = " or ".join(sorted({entry["protocol"] for entry in every}))
    selected = ", ".join(sorted({entry["selected_by"] for entry in every}))
    reads = ", which reads target labels" if selected == "target" else ""
    seeds = ", ".join(sorted({str(entry["seed"]) for entry in every}))
    return f"Protocol: {protocol}. Best epoch selected by {selected} accuracy{reads}. Seed {seeds}."


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['top1']:.2f} (epoch {entry['epoch']})"


def _pretrained(run: TableRun) -> str:
    if run.bits == FLOAT_BITS:
        return ""
    return f"{run.row.pretrained_bits}{' (fetched)' if run.file else ''}"


def _number(anchor: Anchor, cited: Sequence[Anchor]) -> int:
    sources = list(dict.fromkeys((a.source, a.protocol) for a in cited))
    return sources.index((anchor.source, anchor.protocol)) + 1
