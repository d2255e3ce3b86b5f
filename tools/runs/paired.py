"""Differences between methods, paired by seed: both networks of a pair started from one float network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.quantizers.rounding import FLOAT_BITS
from common.writing import write_whole
from tools.runs.recorded import Result
from tools.runs.result_tables import Value, best, last, reestimated, shifted

FLOAT = "float"
VALUES: Mapping[str, Value] = {
    "best epoch": best,
    "last epoch": last,
    "last epoch, statistics estimated anew": reestimated,
    "best epoch, mean over all corruptions": shifted,
}


@dataclass(frozen=True)
class Difference:
    """Of a method from another one at the same bits (from float: its own float network), in points of top-1.

    Attributes:
        by_seed: for the seeds that both have, or other keys of what is paired.
    """

    by_seed: Mapping[Any, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    @property
    def standard_error(self) -> float:
        """Of the mean: the standard deviation (n - 1) of the differences over sqrt(n); nan for one seed."""
        count = len(self.by_seed)
        return float(np.std(list(self.by_seed.values()), ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def differences(rows: Sequence[Result], against: str, value: Value) -> dict[tuple[str, int], Difference]:
    """By (method, bits), for what shares a seed with ``against``, a method or "float"."""
    values = {(r["method"], r["bits"], r["seed"]): number for r in rows if (number := value(r)) is not None}
    found: dict[tuple[str, int], dict[int, float]] = {}
    for (method, bits, seed), number in values.items():
        other = values.get((against, FLOAT_BITS if against == FLOAT else bits, seed))
        if other is not None and method not in (against, FLOAT):
            found.setdefault((method, bits), {})[seed] = number - other
    return {key: Difference(by_seed) for key, by_seed in found.items()}


def markdown(rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], against: str) -> str:
    """A table of every value that was measured; rows and columns as of ``result_tables.markdown``."""
    demo = "demo " if rows[0]["demo"] else ""
    lines = []
    for what, value in VALUES.items():
        found = differences(rows, against, value)
        if not found:
            continue
        lines += [
            "",
            f"## {demo}top-1 minus that of {against}, {what}: points, mean ± standard error over paired seeds",
        ]
        lines += ["", "| method |" + "".join(f" {width} bit{'s' * (width > 1)} |" for width in widths)]
        lines.append("|---|" + "---:|" * len(widths))
        for method in names:
            if method != against:
                cells = (_number(found.get((method, width))) for width in widths)
                lines.append(f"| {method} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join([*lines, ""])


def _number(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    error, count = difference.standard_error, len(difference.by_seed)
    return f"{difference.mean:+.2f}" + (" (one seed)" if count == 1 else f" ± {error:.2f} (n = {count})")


def write(folder: Path, rows: Sequence[Result], names: Sequence[str], widths: Sequence[int], against: str) -> str:
    """Append the tables to table.md and write differences.json; returns the tables."""
    table = markdown(rows, names, widths, against)
    content = [
        {
            "what": what,
            "method": method,
            "bits": bits,
            "mean": one.mean,
            "standard_error": None if math.isnan(one.standard_error) else one.standard_error,
            "by_seed": {str(seed): number for seed, number in one.by_seed.items()},
        }
        for what, value in VALUES.items()
        for (method, bits), one in differences(rows, against, value).items()
    ]
    write_whole(folder / "differences.json", json.dumps({"against": against, "differences": content}, indent=1) + "\n")
    with open(folder / "table.md", "a") as file:
        file.write(table)
    return table
