"""From runs to the page: what each section shows. How it looks is report.html's business."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tools.page import layers, plots, svg
from tools.page.entries import Entry, distinct, entries_of
from tools.page.jobs import UNREADABLE, JobRecord, reason
from tools.page.layers import Network
from tools.runs.reference import trained_too_little

Picture = tuple[Markup, str]  # the drawing, and a line below it


def render(runs: Sequence[JobRecord], every_seed: bool = False) -> str:
    """The page. A run that turns out not to be drawable gets a ``problem`` and is listed like the others."""
    try:
        return _page(runs, every_seed)
    except Exception:  # of values that nobody foresaw in some run's files: which run's?
        for run in runs:
            if not run.problem:
                _try_alone(run)
        return _page(runs, every_seed)


def _try_alone(run: JobRecord) -> None:
    try:
        _page([run], every_seed=False)
    except Exception as error:
        run.problem = f"broken: {reason(error)}"


def _page(runs: Sequence[JobRecord], every_seed: bool) -> str:
    with svg.style():
        details = {}
        finished = [run for run in runs if not run.problem]
        groups = [(same, entries_of(same)) for same in distinct(finished, lambda run: run.group)]
        for _, entries in groups:
            for entry in entries:
                shown = every_seed
                for run in entry.runs:
                    section = run_section(run, entry.title, pictures=every_seed or not shown)
                    details[run.name] = section
                    shown = shown or section["network"] is not None
        networks = {name: section["network"] for name, section in details.items()}
        sections = [group_section(entries, networks) for _, entries in groups]
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


def group_section(entries: Sequence[Entry], networks: dict[str, Network | None]) -> dict[str, Any]:
    """Runs of one task, pair and protocol: their table, and the pictures in which they stand side by side."""
    first = entries[0].runs[0]
    best = {
        width: max(same, key=lambda entry: entry.accuracy("best")[0])
        for width, same in ((same[0].bits, same) for same in distinct(entries, lambda entry: entry.bits))
        if len(same) > 1
    }
    names = first.summary.get("classes", [])
    return {
        "title": first.task + (f", {first.pair}" if first.pair else ""),
        "run": first,
        "entries": entries,
        "doubt": doubt_of(entries),
        "networks": {entry.title: network_of(entry, networks) for entry in entries},
        "leads": {entry.title for entry in best.values()},
        "shifted": any(entry.shifted for entry in entries),
        "adapted": any(entry.adapted for entry in entries),
        "adapted_clean": any(entry.adapted_clean for entry in entries),
        "several": any(len(entry.runs) > 1 for entry in entries),
        "pictures": [*accuracy_pictures(entries), *curve_pictures(entries), *relation_pictures(entries)],
        "classes": [entry for entry in entries if list(entry.per_class) == names] if names else [],
        "names": names,
    }


def doubt_of(entries: Sequence[Entry]) -> str:
    """Whether the float network is no reference; across domains, where adaptation adds to it, nothing is said."""
    floats = [entry for entry in entries if entry.label == "float" and not entry.runs[0].pair]
    others = {entry.title: entry.accuracy("best")[0] for entry in entries if entry.runs[0].widths != (32, 32)}
    return trained_too_little(floats[0].accuracy("best")[0], others) if floats else ""


def network_of(entry: Entry, networks: dict[str, Network | None]) -> Network | None:
    """Of the first run whose weights could be read."""
    return next(filter(None, (networks[run.name] for run in entry.runs)), None)


def accuracy_pictures(entries: Sequence[Entry]) -> list[Picture]:
    quantized = [entry for entry in entries if entry.runs[0].widths[0] == entry.runs[0].widths[1] < 32]
    widths = sorted({entry.runs[0].widths[0] for entry in quantized})
    if not quantized:
        return []
    data, label = entries[0].runs[0].data, "target top-1" if entries[0].runs[0].pair else "top-1"
    floats = [entry for entry in entries if entry.label == "float"]
    found = []
    for title, value in (
        (label, lambda entry: entry.accuracy("best")),
        (f"corrupted {label}", lambda entry: entry.shifted),
        (f"corrupted {label}, re-aligned", lambda entry: entry.adapted),
    ):
        series: dict[str, dict[int, tuple[float, float]]] = {entry.label: {} for entry in quantized}
        for entry in quantized:
            if (point := value(entry)) is not None:
                series[entry.label][entry.runs[0].widths[0]] = point
        reference = value(floats[0]) if floats else None
        if any(series.values()):
            drawing = plots.by_bits(series, widths, reference and reference[0], f"{data}{title}")
            found.append((drawing, f"Best epoch, {data}data." if data else "Best epoch."))
    return found


def curve_pictures(entries: Sequence[Entry]) -> list[Picture]:
    found = []
    for same in distinct(entries, lambda entry: entry.bits):
        run = same[0].runs[0]
        rows = {entry.label: entry.curve for entry in same}
        several = any(len(entry.runs) > 1 for entry in same)
        drawing = plots.curves(rows, run.split, run.data, f"{run.bits} bits")
        found.append((drawing, "Mean over the seeds." if several else ""))
    return found


def relation_pictures(entries: Sequence[Entry]) -> list[Picture]:
    found: list[Picture] = []
    measured = {entry.title: entry.relations("quantized") for entry in entries if entry.relations("quantized")}
    if measured:
        images = next(entry for entry in entries if entry.title in measured).runs[0].summary["relation_error"]["images"]
        drawing = plots.by_layer(measured, "mean |D|", "relation error of the quantized activations")
        found.append((drawing, f"D = C(quantized) − C(before), on {images} test images after the last epoch."))
    trained = {entry.title: shifts for entry in entries if (shifts := training_relations(entry.runs[0]))}
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


def training_relations(run: JobRecord) -> dict[str, dict[str, float]]:
    """site -> domain -> mean |D| over the batches of the last epoch; empty: the run did not measure it."""
    by_site: dict[str, dict[str, float]] = {}
    for key, value in ((run.summary.get("relation_shift") or {}).get("layers") or {}).items():
        domain, site = key.split(" ", 1)
        by_site.setdefault(site, {})[domain] = float(value)
    return by_site


def run_section(run: JobRecord, title: str, pictures: bool) -> dict[str, Any]:
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


def feature_picture(run: JobRecord, file: str, title: str) -> Markup:
    with np.load(run.folder / file) as arrays:
        return plots.features(dict(arrays), title)


def noted(run: JobRecord, what: str, make: Any) -> Any:
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
