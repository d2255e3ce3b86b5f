"""The pictures that the tools draw, each on a matplotlib axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#d1495b", "#3a9d6e", "#e39b2d", "#7a4fa3", "#4fb3bf", "#8a5a44", "#6b7280", "#c2488f", "#9aa83a")


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def learning_curves(axes: Axes, runs: dict[str, Sequence[dict[str, Any]]], split: str = "test") -> None:
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
        axes.text((left + right) / 2, top * 0.99, f"{level:+.2f}", rotation=90, ha="center", va="top", fontsize=7)
    axes.set(xlabel="weight", ylabel="count", title=title, ylim=(0, top * 1.15), xlim=(low, high))


def save(figure: Any, path: Path) -> Path:
    """Write a PNG and let go of the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path
