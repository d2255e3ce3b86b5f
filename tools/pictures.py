"""The pictures that the tools draw, each on a matplotlib axes."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

COLOURS = ("#1f5fa8", "#d1495b", "#3a9d6e", "#e39b2d", "#7a4fa3", "#4fb3bf", "#8a5a44", "#6b7280", "#c2488f", "#9aa83a")

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h")


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def learning_curves(axes: Axes, runs: Mapping[str, Sequence[dict[str, Any]]], split: str = "test") -> None:
    """Top-1 accuracy against the epoch, a line per run; ``runs`` maps a label to the rows of its metrics.jsonl."""
    for index, (label, rows) in enumerate(runs.items()):
        epochs = [row["epoch"] + 1 for row in rows]
        axes.plot(epochs, [row[split]["prec1"] for row in rows], color=colour(index), marker="o", ms=3, label=label)
        axes.plot(epochs, [row["train"]["prec1"] for row in rows], color=colour(index), ls=":", lw=1)
    axes.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100), title=f"{split} (solid), training (dotted)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def weight_grid(axes: Axes, weights: np.ndarray, thresholds: np.ndarray, levels: np.ndarray, title: str) -> None:
    """A layer's weight histogram, the thresholds between its levels, and each level's value above its interval.

    Args:
        weights: (N,) float weights. thresholds: (L - 1,) ascending, on the same axis. levels: (L,) values they map to.
    """
    low, high = np.quantile(weights, (0.001, 0.999))
    axes.hist(weights, bins=80, range=(low, high), color="#9db8d9")
    edges = np.concatenate(([low], np.clip(thresholds, low, high), [high]))
    for threshold in thresholds:
        axes.axvline(threshold, color=COLOURS[1], lw=0.8)
    top = axes.get_ylim()[1]
    for left, right, level in zip(edges, edges[1:], levels, strict=False):
        axes.text((left + right) / 2, top * 1.14, f"{level:+.2f}", rotation=90, ha="center", va="top", fontsize=7)
    axes.set(xlabel="weight", ylabel="count", title=title, ylim=(0, top * 1.16), xlim=(low, high))


def accuracy_by_bits(
    axes: Axes,
    series: dict[str, dict[int, tuple[float, float]]],
    widths: Sequence[int],
    reference: float | None = None,
) -> None:
    """Mean accuracy with error bars at every bit-width, a line per method; widths are evenly spaced, widest first.

    Methods stand side by side within a width, so that their error bars can be told apart; lines join them where there
    are at least three widths.

    Args:
        series: label -> bits -> (mean, standard deviation; nan: no bar).
        reference: accuracy of the float network, drawn as a dashed line.
    """
    positions = {width: index for index, width in enumerate(sorted(widths, reverse=True))}
    style = "-" if len(positions) > 2 else ""
    spread = 0.5 if len(positions) > 2 else 0.7  # of the distance between two widths
    for index, (label, points) in enumerate(series.items()):
        shift = spread * (index / max(len(series) - 1, 1) - 0.5)
        known = sorted(points, reverse=True)
        axes.errorbar(
            [positions[width] + shift for width in known],
            [points[width][0] for width in known],
            yerr=[np.nan_to_num(points[width][1]) for width in known],
            color=colour(index),
            marker=MARKERS[index % len(MARKERS)],
            ls=style,
            lw=1,
            ms=5,
            capsize=2.5,
            label=label,
        )
    if reference is not None:
        axes.axhline(reference, color="#444444", ls="--", lw=1, label="float")
    for left in range(len(positions) - 1):
        axes.axvline(left + 0.5, color="#dddddd", lw=0.8, zorder=0)
    axes.set_xticks(list(positions.values()), [str(width) for width in positions])
    axes.set(xlabel="bits of weights and activations", xlim=(-0.6, len(positions) - 0.4))
    axes.grid(axis="y", alpha=0.3)


def ratio_bars(
    axes: Axes, labels: Sequence[str], series: dict[str, dict[str, tuple[float, float, float]]], name: str
) -> None:
    """Horizontal bars of ratios to a reference at 1, with a line from the lowest to the highest.

    Args:
        series: what is measured -> label -> (ratio, lowest, highest); an empty one is left out.
    """
    present = {title: values for title, values in series.items() if values}
    height = 0.8 / max(len(present), 1)
    for index, (title, values) in enumerate(present.items()):
        known = [label for label in labels if label in values]
        places = [labels.index(label) + height * (index - (len(present) - 1) / 2) for label in known]
        middles = [values[label][0] for label in known]
        spread = [
            [values[label][0] - values[label][1] for label in known],
            [values[label][2] - values[label][0] for label in known],
        ]
        axes.barh(places, middles, height * 0.92, color=colour(index), label=title, xerr=spread, error_kw={"lw": 1})
        for place, label in zip(places, known, strict=True):
            axes.text(values[label][2], place, f" {values[label][0]:.2f}", va="center", fontsize=8)
    axes.axvline(1, color="#444444", ls="--", lw=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=name, xlim=(0, axes.get_xlim()[1] * 1.08), ylim=(len(labels) - 0.4, -0.6))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", fontsize=8)


def accuracy_bars(axes: Axes, series: Mapping[str, Sequence[float]]) -> None:
    """Horizontal bars of the mean accuracy, the first on top, with a mark for every value; label -> values, in %."""
    kinds = {"float": 0, "ours": 1, "other methods": 7}
    for place, (label, values) in enumerate(series.items()):
        mean = float(np.mean(values))
        kind = next((kind for kind in kinds if label.startswith(kind)), "other methods")
        axes.barh(place, mean, color=colour(kinds[kind]))
        axes.plot(values, [place] * len(values), "k|", ms=6)
        axes.text(max(values), place, f" {mean:.2f}", va="center", fontsize=9)
    handles: list[Artist] = [Patch(color=colour(index), label=kind) for kind, index in kinds.items()]
    handles.append(Line2D([], [], color="k", marker="|", ls="", label="one seed"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12 - 0.3 / max(len(series), 1)),
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    axes.set_yticks(range(len(series)), list(series))
    axes.set(ylim=(len(series) - 0.4, -0.6), xlim=(0, 112), xticks=range(0, 101, 20))
    axes.grid(axis="x", alpha=0.3)


def speed_panels(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """How many times faster than the best float32 each form of a network is: a panel for each network and batch, two
    side by side. ``rows`` are those of tools/deploy_benchmark.py."""
    panels = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))
    lines = -(-len(panels) // 2)
    figure, grid = plt.subplots(lines, 2, figsize=(7, 2.6 * lines), squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        own = [row for row in rows if (row["network"], row["batch"]) == panels[place]]
        for height, row in enumerate(own):
            ours = row["form"].startswith("ours")
            other = re.match(r"(float32|bf16|int8)", row["form"])
            axes.barh(height, row["times_faster"], color=colour(1 if ours else 7 if other else 0))
            axes.text(row["times_faster"], height, f" {row['times_faster']:.2f}", va="center", fontsize=8)
        axes.axvline(1, color="#444444", ls="--", lw=1)
        axes.set_yticks(range(len(own)), [row["form"] for row in own], fontsize=8)
        axes.set_title("{}, batch {}".format(*panels[place]), fontsize=9)
        axes.set(ylim=(len(own) - 0.4, -0.6), xlim=(0, 1.2 * max(row["times_faster"] for row in own)))
        axes.tick_params(axis="x", labelsize=8)
    figure.supxlabel("times faster than the best float32", fontsize=9)
    kinds = {"this project, ours": 1, "this project, other methods": 0, "float32 and other tools": 7}
    handles = [Patch(color=colour(index), label=kind) for kind, index in kinds.items()]
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=9, frameon=False)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a PNG and let go of the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path
