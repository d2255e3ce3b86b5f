"""docs/realignment.md's tables and picture, from the lines of docs/results/realign.jsonl."""

from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt

from common.data.corruptions import STRENGTHS
from common.quantizers import METHODS
from tools import pictures

DEMO = "demo-"
FLOAT = "float"
ORDER = [FLOAT, *METHODS]  # of colours and legends, so that pictures can be compared
Row = dict[str, Any]


def block_of(name: str, rows: list[Row]) -> str:
    """The table called `name`: corrupted, clean or domains, on real images; with demo- before it, on demo data."""
    table = {"corrupted": _corrupted, "clean": _clean, "domains": _domains}[name.removeprefix(DEMO)]
    return table([row for row in rows if row["demo"] == name.startswith(DEMO)])


def draw(rows: list[Row], path: Path) -> Path:
    """Mean top-1 over the corruptions by number of images: a panel for each width, a line for each method and float."""
    runs = [own for own in map(_on_corruptions, _by_run(rows).values()) if own]
    methods = sorted({own[0]["method"] for own in runs}, key=ORDER.index)
    panels = sorted({own[0]["bits"] for own in runs if own[0]["method"] != FLOAT}, reverse=True)
    height = max(1, -(-len(panels) // 2))
    figure, grid = plt.subplots(height, 2, figsize=(7, 3 * height), sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for own in runs:
            method, counts = own[0]["method"], list(own[0]["with"])
            if own[0]["bits"] == panel or method == FLOAT:
                means, shade = _means(own, ("with",)), pictures.colour(methods.index(method))
                axes.plot(range(len(means)), means, "--" if method == FLOAT else "o-", ms=4, color=shade, label=method)
                axes.set_xticks(range(len(means)), ["0", *counts])
        axes.set(title=f"{'demo data, ' if rows[0]['demo'] else ''}{panel} bits", xlabel="unlabelled images")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    grid.flat[0].set_ylabel("top-1 (%), mean over corruptions")
    figure.tight_layout()
    return pictures.save(figure, path)


def draw_sizes(rows: list[Row], path: Path) -> Path:
    """Mean top-1 over the corruptions by the size of the file: an arrow from before to behind 256 unlabelled images.

    Methods of one width, whose files are alike, stand side by side, at most 4 % from their size.
    """
    runs = [own for own in map(_on_corruptions, _by_run(rows).values()) if own]
    methods = sorted({own[0]["method"] for own in runs}, key=ORDER.index)
    figure, axes = plt.subplots(figsize=(5, 3.8))
    for bits in dict.fromkeys(own[0]["bits"] for own in runs):
        alike = sorted((own for own in runs if own[0]["bits"] == bits), key=lambda own: own[0]["bytes"])
        for place, own in enumerate(alike):
            size = own[0]["bytes"] / 1000 * 1.025 ** (place - (len(alike) - 1) / 2)
            before, after = fmean(row["before"] for row in own), fmean(fmean(row["with"]["256"]) for row in own)
            shade = pictures.colour(methods.index(own[0]["method"]))
            axes.annotate("", (size, after), (size, before), arrowprops={"arrowstyle": "-|>", "color": shade})
            axes.plot(size, before, "o", ms=5, mfc="white", color=shade)
            axes.plot(size, after, "o", ms=5, color=shade, label=own[0]["method"])
        lowest = min(fmean(row["before"] for row in own) for own in alike)
        width = "float" if bits == 32 else f"{bits} bits"
        middle = fmean(own[0]["bytes"] for own in alike) / 1000
        axes.annotate(width, (middle, lowest), (0, -16), textcoords="offset points", ha="center", fontsize=9)
    names = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    handles = [names[method] for method in methods]
    figure.legend(handles, methods, fontsize=8, frameon=False, loc="lower center", ncols=len(methods), columnspacing=1)
    axes.set(xscale="log", xlabel="file (kB)", ylabel="top-1 under corruption (%)")
    axes.set_title("as shipped (hollow) and re-aligned by 256 images (full)", fontsize=10)
    axes.set_xticks(ticks := [100, 200, 500, 1000], [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return pictures.save(figure, path)


def _corrupted(rows: list[Row]) -> str:
    header, body = ["network", "bits", "before"], []
    for own in _by_run(rows).values():
        if not (corrupted := _on_corruptions(own)):
            continue
        first = corrupted[0]
        header[3:] = [*(f"{count}" for count in first["with"]), *(f"{count}, no prior" for count in first["without"])]
        cells = (f"{cell:.1f}" for cell in _means(corrupted, ("with", "without")))
        body.append([first["method"], _width(first), *cells])
    return _table(header, body) + _each_corruption(rows)


def _each_corruption(rows: list[Row]) -> str:
    body = []
    for own in _by_run(rows).values():
        if corrupted := {row["domain"]: row for row in _on_corruptions(own)}:
            cells = [f"{row['before']:.1f} → {fmean(row['with']['64']):.1f}" for row in corrupted.values()]
            body.append([own[0]["method"], _width(own[0]), *cells])
    return _table(["network", "bits", *(f"{name}, 64 images" for name in STRENGTHS)], body)


def _clean(rows: list[Row]) -> str:
    body = []
    for row in (row for row in rows if row["domain"] == "clean"):
        stream, alone = row["stream"], row["one_class"]
        cells = [row["before"], fmean(row["with"]["256"]), fmean(row["without"]["256"]), stream["before"]]
        cells += [stream["8"], stream["32"], fmean(alone["before"]), fmean(alone["stream"])]
        times = f"{row['time']['at_once']:.2f} / {row['time']['batches']:.2f}"
        body.append([row["method"], _width(row), *(f"{cell:.1f}" for cell in cells), times])
    heads = ["before", "256", "256, no prior", f"{rows[0]['stream']['images']} of them" if rows else "", "8 at a time"]
    return _table(["network", "bits", *heads, "32 at a time", "one class", "one class at a time", "time"], body)


def _domains(rows: list[Row]) -> str:
    body = []
    for row in (row for row in rows if row["domain"] in ("source", "target")):
        cells = [row["before"], *(fmean(row["with"][n]) for n in ("16", "64", "256")), fmean(row["without"]["256"])]
        trained = "DANN" if row["adaptation"] == "dann" else "source only"
        body.append([trained, row["method"], _width(row), row["domain"], *(f"{cell:.1f}" for cell in cells)])
    heads = ["before", "16 images", "64", "256", "256, no prior"]
    return _table(["trained", "network", "bits", "tested on", *heads], body)


def _table(header: list[str], body: list[list[str]]) -> str:
    """Text in the first column, figures in the others; around it the empty lines of a block."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"


def _by_run(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["base"], []).append(row)
    return found


def _on_corruptions(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["domain"] in STRENGTHS]


def _means(rows: list[Row], kinds: tuple[str, ...]) -> list[float]:
    """Over the rows: top-1 before, then of each kind ("with" or "without" a prior) by number of images."""
    means = [fmean(row["before"] for row in rows)]
    return means + [fmean(fmean(row[kind][n]) for row in rows) for kind in kinds for n in rows[0][kind]]


def _width(row: Row) -> str:
    return "32" if row["method"] == FLOAT else str(row["bits"])
