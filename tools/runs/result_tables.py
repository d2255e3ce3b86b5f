"""What a comparison found, as a Markdown table and a picture."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tools import pictures
from tools.runs.budget import statement
from tools.runs.recorded import Result, merge
from tools.runs.reference import trained_too_little

Value = Callable[[Result], float | None]


def statistics(rows: Iterable[Result], value: Value) -> dict[tuple[str, int], tuple[float, float, int]]:
    """(mean, standard deviation, number) over the seeds by (method, bits); the deviation (n - 1) of one seed is nan."""
    groups: dict[tuple[str, int], list[float]] = {}
    for entry in rows:
        if (number := value(entry)) is not None:
            groups.setdefault((entry["method"], entry["bits"]), []).append(number)
    return {key: (*mean_and_spread(values), len(values)) for key, values in groups.items()}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1), which is nan for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def best(entry: Result) -> float:
    return entry["best"]["top1"]


def last(entry: Result) -> float:
    return entry["last"]["top1"]


def reestimated(entry: Result) -> float | None:
    return entry["reestimated"]["test"]["prec1"] if entry.get("reestimated") else None


def shifted(entry: Result) -> float | None:
    return entry["shift"]["mean"] if entry["shift"] else None


def adapted_clean(entry: Result) -> float | None:
    return entry["adapted"]["test"]["prec1"] if entry.get("adapted") else None


def adapted(entry: Result) -> float | None:
    return _adapted(entry)["mean"] if _adapted(entry) else None


def _adapted(entry: Result) -> dict[str, Any]:
    return (entry["shift"] or {}).get("adapted") or {}


def markdown(rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], seeds: int) -> str:
    """The tables: best epoch, last epoch and, where they were evaluated, corrupted test images.

    Args:
        rows: of the cells, the float ones among them. names, widths: rows and columns; what has no cell gets a dash.
        seeds: how many were asked for; a mean over fewer says so.
    """
    demo = "demo " if rows[0]["demo"] else ""
    selected = ", ".join(sorted({entry["protocol"]["selected_by"] for entry in rows}))
    sources = {entry["protocol"]["source"] for entry in rows if entry["bits"] < 32}
    chained = any(not source.startswith("float_") for source in sources)
    spread = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    about = (
        f"{spread}; best epoch selected by {selected} accuracy; every width starts from "
        f"{'the next wider one' if chained else 'the float network of its seed'}. In brackets: effective bits of "
        "weights/inputs, log2 of the distinct values, mean over the convolutions (without the image as input). A dash: "
        "the method does not define that width, or its run is not finished."
    )
    title = "demo data, not the CIFAR-10 benchmark" if demo else "CIFAR-10"
    lines = [f"# {rows[0]['task']}: {title}", "", about, "", statement(rows)]
    means = {key: mean for key, (mean, _, _) in statistics(rows, best).items()}
    quantized = {f"{name} at {width} bits": mean for (name, width), mean in means.items() if name != "float"}
    if ("float", 32) in means and (doubt := trained_too_little(means["float", 32], quantized)):
        lines += ["", f"**{doubt}**"]
    sections: list[tuple[str, Value]] = [("best epoch", best), ("last epoch", last)]
    if by := {entry["reestimated"]["batches"] for entry in rows if entry.get("reestimated")}:
        batches = " or ".join(map(str, sorted(by)))
        sections.append((f"last epoch, statistics estimated anew from {batches} training batches", reestimated))
    if count := _corrupted_images(rows):
        sections.append((f"best epoch, mean over all corruptions of {count} test images", shifted))
        if by := {_adapted(entry)["images"] for entry in rows if _adapted(entry)}:
            number = " or ".join(map(str, sorted(by)))
            sections.append((f"the same, re-aligned by {number} other images of each corruption", adapted))
    if any(adapted_clean(entry) is not None for entry in rows):
        sections.append(("best epoch, clean test images, re-aligned by training images", adapted_clean))
    bits = _effective(rows)

    def text(cells: dict[tuple[str, int], tuple[float, float, int]], key: tuple[str, int]) -> str:
        return f" {_number(cells[key], seeds)} ({bits[key]}) |" if key in cells else " – |"

    for name, value in sections:
        cells = statistics(rows, value)
        reference = f"; float: {_number(cells[('float', 32)], seeds)}" if ("float", 32) in cells else ""
        lines += ["", f"## {demo}top-1 (%), {name}{reference}", ""]
        lines += [
            "| method |" + "".join(f" {width} bit{'s' * (width > 1)} |" for width in widths),
            "|---|" + "---:|" * len(widths),
        ]
        for method in names:
            lines.append(f"| {method} |" + "".join(text(cells, (method, width)) for width in widths))
    return "\n".join([*lines, *_by_corruption(rows, names, widths, demo)]) + "\n"


def _corrupted_images(rows: Sequence[Result]) -> str:
    """How many test images were corrupted; empty: none."""
    counts = {entry["shift"]["images"] for entry in rows if entry["shift"]}
    return " or ".join(f"{count:,}" for count in sorted(counts))


def _number(cell: tuple[float, float, int], seeds: int) -> str:
    mean, deviation, count = cell
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    return f"{mean:.2f}{spread}" + (f" [{count} of {seeds} seeds]" if count < seeds else "")


def _effective(rows: Sequence[Result]) -> dict[tuple[str, int], str]:
    weights = statistics(rows, lambda entry: entry["effective"]["weight_bits"])
    inputs = statistics(rows, lambda entry: entry["effective"]["input_bits"])
    bounds = statistics(rows, lambda entry: entry["effective"]["uncounted"])

    def text(key: tuple[str, int]) -> str:
        weight = f"{weights[key][0]:.1f}" if key in weights else "float"
        sign = "≥" if bounds[key][0] else ""
        return f"{weight}/" + (f"{sign}{inputs[key][0]:.1f}" if key in inputs else "float")

    return {key: text(key) for key in bounds}


def _by_corruption(rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], demo: str) -> list[str]:
    """A table with a column per corruption, mean over its strengths and the seeds."""
    evaluated = [entry["shift"] for entry in rows if entry["shift"]]
    kinds = list(dict.fromkeys(kind for shift in evaluated for kind in shift if isinstance(shift[kind], list)))
    if not kinds:
        return []
    columns = {kind: statistics(rows, partial(_mean_of, kind=kind)) for kind in kinds}
    columns = {"clean": statistics(rows, best), **columns, "all corruptions": statistics(rows, shifted)}
    if any(map(_adapted, rows)):
        columns["re-aligned: clean"] = statistics(rows, adapted_clean)
        columns |= {f"re-aligned: {kind}": statistics(rows, partial(_mean_adapted, kind=kind)) for kind in kinds}
        columns["re-aligned: all"] = statistics(rows, adapted)
    lines = ["", f"## {demo}top-1 (%), best epoch, by corruption (mean over strengths and seeds)", ""]
    lines += ["| method | bits |" + "".join(f" {kind} |" for kind in columns), "|---|---:|" + "---:|" * len(columns)]
    for key in [("float", 32), *((name, width) for width in widths for name in names)]:
        if key in columns["all corruptions"]:
            texts = (f" {cells[key][0]:.1f} |" if key in cells else " – |" for cells in columns.values())
            lines.append(f"| {key[0]} | {key[1]} |" + "".join(texts))
    return lines


def _mean_of(entry: Result, kind: str) -> float | None:
    return float(np.mean(entry["shift"][kind])) if entry["shift"] else None


def _mean_adapted(entry: Result, kind: str) -> float | None:
    return float(np.mean(_adapted(entry)[kind])) if _adapted(entry) else None


def draw(rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], path: Path) -> Path:
    """Accuracy against bits, and below it on the corrupted images where those were evaluated."""
    data = "demo data" if rows[0]["demo"] else "CIFAR-10"
    panels: list[tuple[str, Value]] = [("clean test images", best)]
    if count := _corrupted_images(rows):
        panels.append((f"{count} corrupted test images (mean)", shifted))
    if any(map(_adapted, rows)):
        panels.append(("the same, re-aligned", adapted))
    found = [(title, statistics(rows, value)) for title, value in panels]
    return pictures.save(panels_of(found, names, widths, f"{rows[0]['task']} on {data}"), path)


def panels_of(
    panels: Sequence[tuple[str, dict[tuple[str, int], tuple[float, float, int]]]],
    names: Sequence[str],
    widths: Sequence[int],
    title: str,
) -> Figure:
    """One panel below the other, so that a narrow page shows them: a title, and ``statistics`` for each."""
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(6, 0.9 + 3.1 * len(panels)), sharex=True, sharey=True, squeeze=False
    )
    for axes, (about, cells) in zip(grid[:, 0], panels, strict=True):
        series = {name: {w: cells[name, w][:2] for w in widths if (name, w) in cells} for name in names}
        reference = cells.get(("float", 32))
        pictures.accuracy_by_bits(axes, series, widths, reference[0] if reference else None)
        axes.set(title=about, ylabel="top-1 at the best epoch (%)", xlabel="")
    grid[-1, 0].set_xlabel("bits of weights and activations")
    figure.suptitle(title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.53, 0), ncols=4, frameon=False)
    return figure


def write(folder: Path, rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], seeds: int) -> str:
    """Write results.jsonl, table.md and accuracy.png; returns the table."""
    merge(folder / "results.jsonl", rows)
    table = markdown(rows, names, widths, seeds)
    (folder / "table.md").write_text(table)
    draw(rows, names, widths, folder / "accuracy.png")
    return table
