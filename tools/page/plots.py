"""The pictures of a report, each an <svg> element."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from common.measure import feature_map
from tools import pictures
from tools.page import svg
from tools.page.layers import Layer

WIDE, SMALL = (5.0, 3.3), (3.4, 2.9)
NARROWEST = 10.0  # points of accuracy that a picture spans, so that small differences look small
Series = Mapping[str, Sequence[tuple[str, float]]]


def curves(rows: dict[str, Sequence[dict[str, Any]]], split: str, data: str, title: str) -> Markup:
    """Learning curves; ``rows`` as `pictures.learning_curves` takes them, ``data`` is "demo " or nothing."""
    figure = Figure(figsize=WIDE)
    axes = figure.subplots()
    pictures.learning_curves(axes, rows, split)
    axes.set(ylabel=f"{data}top-1 (%)", title=f"{title}: {split} (solid), training (dotted)")
    _whole_numbers(axes, max((len(same) for same in rows.values()), default=1))
    _legend_below(axes)
    return svg.inline(figure, f"learning curves, {title}")


def by_bits(
    series: dict[str, dict[int, tuple[float, float]]], widths: Sequence[int], reference: float | None, label: str
) -> Markup:
    """Accuracy against bits, as `pictures.accuracy_by_bits` draws it."""
    figure = Figure(figsize=WIDE)
    axes = figure.subplots()
    pictures.accuracy_by_bits(axes, series, widths, reference)
    low, high = axes.get_ylim()
    rest = max(0.0, NARROWEST - (high - low)) / 2
    axes.set(ylabel=f"{label} (%)", title=f"{label} against bits", ylim=(max(0, low - rest), min(100, high + rest)))
    _legend_below(axes)
    return svg.inline(figure, f"{label} against bits")


def by_layer(series: Series, ylabel: str, title: str, looks: Mapping[str, tuple[int, str]] | None = None) -> Markup:
    """A line per label over the layers, numbered in order of use.

    Args:
        series: label -> (layer, value) in order of use; nan leaves a gap.
        looks: label -> number of its colour and line style; by default each has a colour of its own.
    """
    figure = Figure(figsize=WIDE)
    axes = figure.subplots()
    for index, (label, points) in enumerate(series.items()):
        number, ls = (looks or {}).get(label, (index, "-"))
        x, y = np.arange(1, len(points) + 1), [value for _, value in points]
        axes.plot(x, y, color=pictures.colour(number), marker="o", ms=3, lw=1.3, ls=ls, label=label)
    axes.set(xlabel="layer, in order of use", ylabel=ylabel, title=title, ylim=(0, None))
    _whole_numbers(axes, max(map(len, series.values())))
    axes.grid(axis="y")
    _legend_below(axes)
    return svg.inline(figure, title)


def layer(entry: Layer) -> Markup:
    """Above: a layer's weights, their CDF and the normal one; below: the share of weights on each level."""
    figure = Figure(figsize=SMALL)
    shapes = {} if entry.values is None else {"height_ratios": (3, 2)}
    grid = figure.subplots(1 if entry.values is None else 2, 1, squeeze=False, gridspec_kw=shapes | {"hspace": 0.55})[
        :, 0
    ]
    ordered = np.sort(entry.weights)
    low, high = np.quantile(ordered, (0.001, 0.999))
    top, cdf = grid[0], grid[0].twinx()
    if high > low:
        top.hist(ordered, bins=48, range=(low, high), color=svg.SOFT, histtype="stepfilled")
        x = np.linspace(low, high, 60)
        own = np.searchsorted(ordered, x, side="right") / len(ordered)
        cdf.plot(x, own, color=pictures.colour(0), lw=1.4)
        cdf.plot(x, norm.cdf(x, ordered.mean(), ordered.std()), color=pictures.colour(1), lw=1.1, ls="--")
        top.set_xlim(low, high)
    cdf.set(ylim=(0, 1.02), yticks=(0, 0.5, 1))
    top.set(yticks=[], title=entry.name)
    top.xaxis.set_major_locator(MaxNLocator(4))
    if entry.values is not None:
        levels, share = level_shares(entry.values)
        half = 0.35 * float(np.diff(levels).min()) if len(levels) > 1 else 0.5
        edges = np.stack((levels - half, levels + half), 1).flatten()
        bars = np.stack((share, np.zeros_like(share)), 1).flatten()[:-1]  # one path, with gaps between the levels
        grid[1].stairs(bars, edges, fill=True, color=pictures.colour(0))
        grid[1].axhline(100 / len(levels), color=pictures.colour(1), lw=1, ls="--")
        grid[1].set(xlabel="level", ylabel="% of weights")
        grid[1].xaxis.set_major_locator(MaxNLocator(4))
        grid[1].yaxis.set_major_locator(MaxNLocator(3))
    figure.subplots_adjust(left=0.17, right=0.9, bottom=0.16, top=0.92)
    return svg.inline(figure, f"weights of {entry.name} and their levels", tight=False)


def level_shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in ascending order, and the per cent of the elements that each has."""
    levels, counts = np.unique(np.round(values.astype(np.float64), 6), return_counts=True)
    return levels, 100 * counts / len(values)


def features(arrays: Mapping[str, np.ndarray], title: str) -> Markup:
    """Both domains' features in two dimensions: circles are the source, crosses the target, colours the classes."""
    figure = Figure(figsize=(4.2, 3.6))
    axes = figure.subplots()
    feature_map.scatter(axes, arrays)
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2)
    return svg.inline(figure, title)


def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Markup:
    """A confusion matrix, rows the true class, in shares of the row."""
    figure = Figure(figsize=(4.4, 4.0) if len(names) <= 12 else (6.2, 6.2))
    axes = figure.subplots()
    feature_map.show_confusion(axes, counts, names, heat())
    axes.set_title(title)
    return svg.inline(figure, title)


def heat() -> Any:
    """From nothing to blue: the page's background shows through, light or dark."""
    return LinearSegmentedColormap.from_list("report", [(0.23, 0.51, 0.82, 0.0), (0.23, 0.51, 0.82, 1.0)])


def _whole_numbers(axes: Any, last: int) -> None:
    """Epochs or layers 1 to ``last`` on the horizontal axis."""
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True, min_n_ticks=1))


def _legend_below(axes: Any) -> None:
    """In as many columns as fit below the axes; none for a single line."""
    if axes.get_legend():
        axes.get_legend().remove()
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = min(len(labels), max(1, 66 // (max(map(len, labels)) + 7)))
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
