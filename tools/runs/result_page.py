"""The results of studies as text and pictures: blocks of the documents, drawn from docs/results alone."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from tools import pictures
from tools.runs.paired import Difference
from tools.runs.result_tables import mean_and_spread
from tools.runs.study import Entry, Pair, Row, Study, place_of

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
Value = Callable[[Row], float | None]
By = dict[tuple[str, tuple[Pair | None, int]], Row]  # by name of the run, and its pair of domains and seed


def fill(page: str, block: Callable[[str, str], str]) -> str:
    """The page with every block between `<!-- KIND: NAME -->` and `<!-- end -->` written anew by ``block(KIND, NAME)``;
    kinds are results, summary and parity."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2], match[3])}{match[4]}", page)


def summary_of(study: Study, rows: Sequence[Row]) -> str:
    """The last epoch of every run that is there, in a table, and over how many seeds."""
    by = _by(rows)
    lines = [f"| network | bits | epochs | {study.title}, top-1 (%) | seeds |", "|---|---:|---:|---:|---:|"]
    for run in study.runs:
        own = _of(by, run)
        if own:
            tops = _means(own, shared_pairs(study, by), partial(_chosen, "last"))
            lines.append(f"| {run.title} | {_bits(run)} | {own[0]['epochs']} | {_number(tops)} | {len(tops)} |")
    return "\n" + "\n".join(lines) + "\n\n"


def _by(rows: Sequence[Row]) -> By:
    return {(row["run"], place_of(row)): row for row in rows}


def _of(by: By, run: Entry) -> list[Row]:
    return [row for (name, _), row in by.items() if name == run.name]


def shared_pairs(study: Study, by: By) -> list[Pair | None]:
    """The pairs of domains on which every run is finished that is finished on any: means over these compare."""
    found = [{place_of(row)[0] for row in own} for run in study.runs if (own := _of(by, run))]
    return [pair for pair in study.pairs if all(pair in own for own in found)]


def named(pairs: Sequence[Pair | None]) -> str:
    return ", ".join(" to ".join(pair) for pair in pairs if pair) or "none"


def block_of(study: Study, rows: Sequence[Row]) -> str:
    """Protocol, tables, picture, claims and the command of a study."""
    by = _by(rows)
    if not by:
        return f"\nNo run of `{study.name}` is finished.\n\n"
    seeds = sorted({row["seed"] for row in rows})
    protocol = " or ".join(sorted({row["protocol"] for row in rows}))
    spread = "mean ± standard deviation over the seeds" if len(seeds) > 1 else "one seed, so no spread is known"
    if study.pairs[0]:
        spread += (
            f"; each seed's number is the mean over the pairs that every network has: {named(shared_pairs(study, by))}"
        )
    lines = [
        f"Data: {study.data}. Protocol: {protocol}. Budget: {study.budget}. "
        f"Seeds: {', '.join(map(str, seeds))}; {spread}.",
        *("", *table(study, by), "", *pair_table(study, by), f"![{study.title}](results/{study.name}.png)", ""),
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
    adapted, realigned = any(map(_adapted, by.values())), any(map(_realigned, by.values()))
    columns = ["network", "bits", "epochs", *(RULES[rule] for rule in rules)]
    columns += [f"corrupted ({' or '.join(f'{count:,}' for count in sorted(images))} images)"] if shifted else []
    columns += ["the same, re-aligned"] if adapted else []
    columns += ["clean, re-aligned" if shifted else "last epoch, re-aligned"] if realigned else []
    columns += ["values of weights / inputs, log2"]
    lines = [f"| {' | '.join(columns)} |", "|---|---:|---:|" + "---:|" * (len(columns) - 3)]
    for run in study.runs:
        own = _of(by, run)
        if not own:
            lines.append(f"| {run.title} | {_bits(run)} |" + " – |" * (len(columns) - 2))
            continue
        values: list[Value] = [partial(_chosen, rule) for rule in rules]
        values += [_corrupted] if shifted else []
        values += [value for value, wanted in ((_adapted, adapted), (_realigned, realigned)) if wanted]
        cells = [
            run.title,
            _bits(run),
            str(own[0]["epochs"]),
            *(_mean(own, shared_pairs(study, by), value) for value in values),
        ]
        lines.append(f"| {' | '.join([*cells, _effective(own[0]['effective'])])} |")
    return lines


def pair_table(study: Study, by: By) -> list[str]:
    """Markdown: the last epoch by pairs of domains, and re-aligned behind a stroke; nothing for a study of one pair."""
    pairs = [pair for pair in study.pairs if pair]
    if not pairs:
        return []
    names = (f"{source} to {target}" for source, target in pairs)
    values: list[Value] = [partial(_chosen, "last")]
    values += [_realigned] if any(map(_realigned, by.values())) else []
    head = "last epoch / re-aligned" if len(values) > 1 else "last epoch"
    lines = [f"| {head} | bits | {' | '.join(names)} |", "|---|---:|" + "---:|" * len(pairs)]
    for run in study.runs:
        own = [[row for row in _of(by, run) if place_of(row)[0] == pair] for pair in pairs]
        cells = [
            " / ".join(_number([found for row in rows if (found := value(row)) is not None]) for value in values)
            for rows in own
        ]
        lines.append(f"| {run.title} | {_bits(run)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _chosen(rule: str, row: Row) -> float | None:
    return row["top1"].get(rule)


def _corrupted(row: Row) -> float | None:
    return row["shift"]["mean"] if row["shift"] else None


def _adapted(row: Row) -> float | None:
    return ((row["shift"] or {}).get("adapted") or {}).get("mean")


def _realigned(row: Row) -> float | None:
    """On the images that the run is about, not corrupted."""
    found = row.get("adapted") or {}
    return next((found[name]["prec1"] for name in ("test", "target") if name in found), None)


def _means(rows: Sequence[Row], pairs: Sequence[Pair | None], value: Value) -> list[float]:
    """Of each seed the mean over the pairs of domains; a seed that lacks one of them does not count."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if place_of(row)[0] in pairs and (number := value(row)) is not None:
            by_seed.setdefault(row["seed"], []).append(number)
    return [mean_and_spread(one)[0] for one in by_seed.values() if len(one) == len(pairs)]


def _mean(rows: Sequence[Row], pairs: Sequence[Pair | None], value: Value) -> str:
    return _number(_means(rows, pairs, value))


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
    """What the difference of two runs at the last epoch, seed by seed and pair by pair, says of a claim.

    It counts as told apart where the mean over at least three of them is more than two standard errors from zero.
    """
    places = [place for name, place in by if name == first and (second, place) in by]
    if not places:
        return "not measured yet"
    ours, theirs = ([by[name, place]["top1"]["last"] for place in places] for name in (first, second))
    found = Difference({place: one - other for place, one, other in zip(places, ours, theirs, strict=True)})
    figures = f"{_number(ours)} against {_number(theirs)}, {found.mean:+.2f} points"
    seeds = len({seed for _, seed in places})
    counted = f"{seeds} seed{'s' * (seeds > 1)}" + (f", {len(places)} pairs and seeds" if len(places) > seeds else "")
    if len(places) < 3:
        return f"{figures}; {counted}, so no verdict"
    error = found.standard_error
    word = "not told apart" if abs(found.mean) <= 2 * error else "supported" if found.mean > 0 else "contradicted"
    return f"{word}, {figures} (standard error {error:.2f}, {counted})"


def draw(study: Study, rows: Sequence[Row], path: Path) -> Path:
    """Top-1 at the last epoch of every run, a bar with a mark for each seed."""
    by = _by(rows)
    tops = {run.name: _means(_of(by, run), shared_pairs(study, by), partial(_chosen, "last")) for run in study.runs}
    runs = [run for run in study.runs if tops[run.name]]
    figure, axes = plt.subplots(figsize=(6, 0.8 + 0.36 * len(runs)))
    series = {_label(run.title, rows, run.name): tops[run.name] for run in runs}
    pictures.accuracy_bars(axes, series)
    axes.set_title(f"{study.title}: top-1 at the last epoch (%)", fontsize=10)
    return pictures.save(figure, path)


def _label(title: str, rows: Sequence[Row], name: str) -> str:
    row = next(row for row in rows if row["run"] == name)
    return title if row["method"] == "float" else f"{title}, {row['bits'][0]} bits"
