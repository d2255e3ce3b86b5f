"""From runs to the page: what each section shows. How it looks is report.html's business."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from page import layers, plots, svg
from page.cells import Cell, cells_of, distinct
from page.jobs import UNREADABLE, Run, reason
from page.layers import Network

Picture = tuple[Markup, str]  # the drawing, and a line below it


def render(runs: Sequence[Run], every_seed: bool = False) -> str:
    """The page. A run that turns out not to be drawable gets a ``problem`` and is listed like the others."""
    with svg.style():
        details = {}
        finished = [run for run in runs if not run.problem]
        groups = [(same, cells_of(same)) for same in distinct(finished, lambda run: run.group)]
        for _, cells in groups:
            for cell in cells:
                shown = every_seed
                for run in cell.runs:
                    section = run_section(run, cell.title, pictures=every_seed or not shown)
                    details[run.name] = section
                    shown = shown or section["network"] is not None
        networks = {name: section["network"] for name, section in details.items()}
        sections = [group_section(cells, networks) for _, cells in groups]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "pm": plus_minus, "size": size, "bits": bits}
    return environment.get_template("report.html").render(
        groups=sections,
        runs=runs,
        details=list(details.values()),
        problems=[run for run in runs if run.problem],
        demo=any(run.demo for run in finished),
        made=time.strftime("%Y-%m-%d %H:%M"),
    )


def group_section(cells: Sequence[Cell], networks: dict[str, Network | None]) -> dict[str, Any]:
    """Runs of one task, pair and protocol: their table, and the pictures in which they stand side by side."""
    first = cells[0].runs[0]
    best = {
        width: max(same, key=lambda cell: cell.accuracy("best")[0])
        for width, same in ((same[0].bits, same) for same in distinct(cells, lambda cell: cell.bits))
        if len(same) > 1
    }
    names = first.summary.get("classes", [])
    return {
        "title": first.task + (f", {first.pair}" if first.pair else ""),
        "run": first,
        "cells": cells,
        "networks": {cell.title: network_of(cell, networks) for cell in cells},
        "leads": {cell.title for cell in best.values()},
        "shifted": any(cell.shifted for cell in cells),
        "several": any(len(cell.runs) > 1 for cell in cells),
        "pictures": [*accuracy_pictures(cells), *curve_pictures(cells), *relation_pictures(cells)],
        "classes": [cell for cell in cells if list(cell.per_class) == names] if names else [],
        "names": names,
    }


def network_of(cell: Cell, networks: dict[str, Network | None]) -> Network | None:
    """Of the first run whose weights could be read."""
    return next(filter(None, (networks[run.name] for run in cell.runs)), None)


def accuracy_pictures(cells: Sequence[Cell]) -> list[Picture]:
    quantized = [cell for cell in cells if cell.runs[0].widths[0] == cell.runs[0].widths[1] < 32]
    widths = sorted({cell.runs[0].widths[0] for cell in quantized})
    if not quantized:
        return []
    data, label = cells[0].runs[0].data, "target top-1" if cells[0].runs[0].pair else "top-1"
    floats = [cell for cell in cells if cell.label == "float"]
    found = []
    for title, value in (
        (label, lambda cell: cell.accuracy("best")),
        (f"corrupted {label}", lambda cell: cell.shifted),
    ):
        series: dict[str, dict[int, tuple[float, float]]] = {cell.label: {} for cell in quantized}
        for cell in quantized:
            if (point := value(cell)) is not None:
                series[cell.label][cell.runs[0].widths[0]] = point
        reference = value(floats[0]) if floats else None
        if any(series.values()):
            drawing = plots.by_bits(series, widths, reference and reference[0], f"{data}{title}")
            found.append((drawing, f"Best epoch, {data}data." if data else "Best epoch."))
    return found


def curve_pictures(cells: Sequence[Cell]) -> list[Picture]:
    found = []
    for same in distinct(cells, lambda cell: cell.bits):
        run = same[0].runs[0]
        rows = {cell.label: cell.curve for cell in same}
        several = any(len(cell.runs) > 1 for cell in same)
        drawing = plots.curves(rows, run.split, run.data, f"{run.bits} bits")
        found.append((drawing, "Mean over the seeds." if several else ""))
    return found


def relation_pictures(cells: Sequence[Cell]) -> list[Picture]:
    found: list[Picture] = []
    measured = {cell.title: cell.relations("quantized") for cell in cells if cell.relations("quantized")}
    if measured:
        images = next(cell for cell in cells if cell.title in measured).runs[0].summary["relation_error"]["images"]
        drawing = plots.by_layer(measured, "mean |D|", "relation error of the quantized activations")
        found.append((drawing, f"D = C(quantized) − C(before), on {images} test images after the last epoch."))
    trained = {cell.title: shifts for cell in cells if (shifts := training_relations(cell.runs[0]))}
    if trained:
        lines: dict[str, list[tuple[str, float]]] = {}
        looks: dict[str, tuple[int, str]] = {}
        for index, (label, shifts) in enumerate(trained.items()):
            for domain, ls in (("source", "-"), ("target", ":")):
                if points := [(name, row[domain]) for name, row in shifts.items() if domain in row]:
                    lines[f"{label}, {domain}"], looks[f"{label}, {domain}"] = points, (index, ls)
        title = "relation shift in training, where CRP measures it"
        drawing = plots.by_layer(lines, "mean |D|", title, looks)
        found.append((drawing, "Mean over the batches of the last epoch."))
    return found


def training_relations(run: Run) -> dict[str, dict[str, float]]:
    """site -> domain -> mean |D| over the batches of the last epoch; empty: the run did not measure it."""
    by_site: dict[str, dict[str, float]] = {}
    for key, value in ((run.summary.get("relation_shift") or {}).get("layers") or {}).items():
        domain, site = key.split(" ", 1)
        by_site.setdefault(site, {})[domain] = float(value)
    return by_site


def run_section(run: Run, title: str, pictures: bool) -> dict[str, Any]:
    """Everything about one run; what its files do not give is said in its ``notes``."""
    network = noted(run, "layers", lambda: layers.read(run))
    levels = {layer["layer"]: layer for layer in run.summary["layers"]}
    section: dict[str, Any] = {
        "run": run,
        "title": title,
        "network": network,
        "levels": levels,
        "per_class": run.summary.get("per_class", {}),
        "relations": (run.summary.get("relation_error") or {}).get("layers", []),
        "trained": training_relations(run),
        "options": run.config.get("options", {}),
        "versions": run.config.get("versions", {}),
        "command": " ".join(map(str, run.config.get("command", []))),
        "confusions": [],
        "features": [],
        "layer_pictures": [],
        "bits_picture": None,
        "drawn": pictures,
    }
    if not pictures:
        return section
    names = [str(name) for name in run.summary.get("classes", [])]
    section["confusions"] = [
        plots.confusion(counts, names, f"{run.data}{run.split}, {when} epoch") for when, counts in run.confusion.items()
    ]
    for when, file in (("before", "features_before.npz"), ("after", "features_after.npz")):
        if (run.folder / file).exists():
            drawing = noted(
                run, file, lambda file=file, when=when: feature_picture(run, file, f"{run.data}{when} training")
            )
            section["features"] += [drawing] if drawing else []
    if network:
        section["layer_pictures"] = [plots.layer(entry) for entry in network.layers]
    if run.widths != (32, 32):
        lines = {
            what: [
                (name, math.log2(row[f"{key}_levels"]) if row[f"{key}_levels"] else math.nan)
                for name, row in levels.items()
            ]
            for what, key in (("weights", "weight"), ("inputs", "input"))
        }
        section["bits_picture"] = plots.by_layer(lines, "log2 of the distinct values", "effective bits per layer")
    return section


def feature_picture(run: Run, file: str, title: str) -> Markup:
    with np.load(run.folder / file) as arrays:
        return plots.features(dict(arrays), title)


def noted(run: Run, what: str, make: Any) -> Any:
    """What ``make`` gives, or None with a line in the run's notes where its files do not allow it."""
    try:
        return make()
    except UNREADABLE as error:
        run.notes.append(f"no {what}: {reason(error)}")
        return None


def number(value: float, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def plus_minus(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "–"
    return number(pair[0]) + (f" ± {pair[1]:.2f}" if math.isfinite(pair[1]) else "")


def size(count: float) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def bits(levels: int | None) -> str:
    """Effective bits of so many levels; None: float."""
    return "float" if levels is None else f"{math.log2(levels):.2f}"
