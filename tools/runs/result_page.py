"""The results of studies as text and pictures: blocks of the documents, drawn from docs/results alone."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from tools import pictures
from tools.runs.paired import Difference
from tools.runs.result_tables import mean_and_spread
from tools.runs.study import Entry, Row, Study

BLOCK = re.compile(r"(<!-- (results|summary|parity): ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
RULES = {
    "last": "last epoch",
    "source": "best by source",
    "entropy": "by entropy",
    "im": "by im",
    "snd": "by snd",
    "target": "best by target labels",
    "test": "best by test",
}
By = dict[tuple[str, int], Row]  # by name of the run, and seed


def fill(page: str, block: Callable[[str, str], str]) -> str:
    """The page with every block between `<!-- KIND: NAME -->` and `<!-- end -->` written anew by ``block(KIND, NAME)``;
    kinds are results, summary and parity."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], match[3])}{match[4]}", page)


def summary_of(study: Study, rows: Sequence[Row]) -> str:
    """The last epoch of every run that is there, in a table, and over how many seeds."""
    by: By = {(row["run"], row["seed"]): row for row in rows}
    lines = [f"| network | bits | epochs | {study.title}, top-1 (%) | seeds |", "|---|---:|---:|---:|---:|"]
    for run in study.runs:
        own = [row for (name, _), row in by.items() if name == run.name]
        if own:
            last = _number([row["top1"]["last"] for row in own])
            lines.append(f"| {run.title} | {_bits(run)} | {own[0]['epochs']} | {last} | {len(own)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def block_of(study: Study, rows: Sequence[Row]) -> str:
    """Protocol, table, picture, claims and the command of a study."""
    by: By = {(row["run"], row["seed"]): row for row in rows}
    if not by:
        return f"\nNo run of `{study.name}` is finished.\n\n"
    seeds = sorted({seed for _, seed in by})
    protocol = " or ".join(sorted({row["protocol"] for row in rows}))
    spread = "mean ± standard deviation over the seeds" if len(seeds) > 1 else "one seed, so no spread is known"
    lines = [
        f"Data: {study.data}. Protocol: {protocol}. Budget: {study.budget}. "
        f"Seeds: {', '.join(map(str, seeds))}; {spread}.",
        *("", *table(study, by), "", f"![{study.title}](results/{study.name}.png)", ""),
        *(f"- {claim['says']}: {verdict(by, claim['with'], claim['without'])}." for claim in study.claims),
        "",
        f"Command, which resumes: `python tools/study.py docs/studies/{study.name}.json`. Each run, with its command: "
        f"[{study.name}.jsonl](results/{study.name}.jsonl).",
    ]
    return "\n" + "\n".join(lines) + "\n\n"


def table(study: Study, by: By) -> list[str]:
    """Markdown: a row for each run, a column for each rule that chooses an epoch."""
    rules = [rule for rule in RULES if any(rule in row["top1"] for row in by.values())]
    shifted = any(row["shift"] for row in by.values())
    images = {row["shift"]["images"] for row in by.values() if row["shift"]}
    adapted = any(map(_adapted, by.values()))
    columns = ["network", "bits", "epochs", *(RULES[rule] for rule in rules)]
    columns += [f"corrupted ({' or '.join(f'{count:,}' for count in sorted(images))} images)"] if shifted else []
    columns += ["the same, re-aligned", "clean, re-aligned"] if adapted else []
    columns += ["values of weights / inputs, log2"]
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|" + "---:|" * (len(columns) - 3)]
    for run in study.runs:
        own = [row for (name, _), row in by.items() if name == run.name]
        if not own:
            lines.append(f"| {run.title} | {_bits(run)} |" + " – |" * (len(columns) - 2))
            continue
        cells = [run.title, _bits(run), str(own[0]["epochs"])]
        cells += [_number([row["top1"][rule] for row in own if rule in row["top1"]]) for rule in rules]
        cells += [_number([row["shift"]["mean"] for row in own if row["shift"]])] if shifted else []
        cells += [_number(list(filter(None, map(what, own)))) for what in (_adapted, _adapted_clean)] if adapted else []
        lines.append(f"| {' | '.join([*cells, _effective(own[0]['effective'])])} |")
    return lines


def _adapted(row: Row) -> float | None:
    return ((row["shift"] or {}).get("adapted") or {}).get("mean")


def _adapted_clean(row: Row) -> float | None:
    return row["adapted"]["test"]["prec1"] if row.get("adapted") and "test" in row["adapted"] else None


def _bits(run: Entry) -> str:
    return "/".join(dict.fromkeys(str(run.flags[name]) for name in ("bitW", "abitW") if name in run.flags))


def _number(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean, deviation = mean_and_spread(values)
    return f"{mean:.2f}" + ("" if math.isnan(deviation) else f" ± {deviation:.2f}")


def _effective(effective: Mapping[str, Any]) -> str:
    if effective["weight_bits"] is None:
        return "float"
    inputs = effective["input_bits"]
    text = "float" if inputs is None else f"{'≥ ' if effective['uncounted'] else ''}{inputs:.1f}"
    return f"{effective['weight_bits']:.1f} / {text}"


def verdict(by: By, first: str, second: str) -> str:
    """What the difference of two runs at the last epoch, seed by seed, says of a claim.

    It counts as told apart where the mean over at least three seeds is more than two standard errors from zero.
    """
    seeds = sorted(seed for name, seed in by if name == first and (second, seed) in by)
    if not seeds:
        return "not measured yet"
    ours, theirs = ([by[name, seed]["top1"]["last"] for seed in seeds] for name in (first, second))
    found = Difference({seed: one - other for seed, one, other in zip(seeds, ours, theirs, strict=True)})
    figures = f"{_number(ours)} against {_number(theirs)}, {found.mean:+.2f} points"
    if len(seeds) < 3:
        return f"{figures}; {len(seeds)} seed{'s' * (len(seeds) > 1)}, so no verdict"
    error = found.standard_error
    word = "not told apart" if abs(found.mean) <= 2 * error else "supported" if found.mean > 0 else "contradicted"
    return f"{word}, {figures} (standard error {error:.2f}, {len(seeds)} seeds)"


def draw(study: Study, rows: Sequence[Row], path: Path) -> Path:
    """Top-1 at the last epoch of every run, a bar with a mark for each seed."""
    runs = [run for run in study.runs if any(row["run"] == run.name for row in rows)]
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.36 * len(runs)))
    series = {
        _label(run.title, rows, run.name): [row["top1"]["last"] for row in rows if row["run"] == run.name]
        for run in runs
    }
    pictures.accuracy_bars(axes, series)
    axes.set_title(f"{study.title}: top-1 at the last epoch (%)", fontsize=10)
    return pictures.save(figure, path)


def _label(title: str, rows: Sequence[Row], name: str) -> str:
    row = next(row for row in rows if row["run"] == name)
    return title if row["method"] == "float" else f"{title}, {row['bits'][0]} bits"
