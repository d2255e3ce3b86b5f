"""The results of finished runs, a line each in results.jsonl."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.reading import read_json, read_objects
from common.writing import write_whole

COUNTED = 4096  # distinct inputs up to which common.measure.effective_bits counts them
Result = dict[str, Any]  # a line of results.jsonl


def read_summary(job: Path) -> dict[str, Any] | None:
    """A job's summary.json, with what a later --test_only left in test.json of shift and re-alignment; None: neither.

    The later ones count only if they are of the same network: its accuracy on the clean images is the summary's.
    """
    summary, test = _read(job / "summary.json"), _read(job / "test.json")
    if not summary:
        return None
    later: dict[str, Any] = {
        key: test[key] for key in ("shift", "adapted") if key in test and not _says(summary, test, key)
    }
    if later:
        try:
            same = abs(test["test"]["prec1"] - summary["best"]["test_prec1"]) < 0.1
        except (LookupError, TypeError):
            same = False
        summary |= later if same else {}
    return summary


def _says(summary: dict[str, Any], test: dict[str, Any], key: str) -> bool:
    """Whether the summary has the value, and re-aligned too where the later one has it so."""
    return key in summary and ("adapted" in summary[key] or "adapted" not in test[key])


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, "a file of a run")
    except UserError:
        return {}


def result(job: Path, method: str, bits: int, source: str | None, weight_bits: int | None = None) -> Result | None:
    """The line of a finished cell; None: it is not finished. ``weight_bits`` as in `effective`."""
    summary = read_summary(job)
    if summary is None:
        return None
    return {
        "cell": job.name,
        "task": summary["task"],
        "method": method,
        "bits": bits,
        "seed": summary["seed"],
        "demo": summary["demo"],
        "best": {"epoch": summary["best"]["epoch"], "top1": summary["best"]["test_prec1"]},
        "last": {"epoch": summary["last"]["epoch"], "top1": summary["last"]["test_prec1"]},
        "effective": effective(summary["layers"], bits < 32, weight_bits),
        "shift": summary.get("shift"),
        "reestimated": summary.get("reestimated"),
        "adapted": summary.get("adapted"),
        "protocol": {
            "selected_by": summary["selected_by"],
            "epochs": summary["last"]["epoch"] + 1,
            "source": source,
            **{name: value for name, value in summary.get("training", {}).items() if name != "epochs"},
        },
    }


def effective(layers: Sequence[dict[str, Any]], quantized: bool, weight_bits: int | None = None) -> dict[str, Any]:
    """Effective bits of a network, from the ``layers`` of its summary.

    log2 of the distinct weights, averaged over the convolutions, and of the distinct values that they multiply,
    averaged over those whose input is not the image; None: float. ``weight_bits`` replaces the count where a method
    has a scale for every filter, which makes more values than its codes have. ``uncounted`` inputs have more than
    4,096 values and enter as 12 bits, so that the mean is then a lower bound.
    """
    weights = [layer["weight_levels"] for layer in layers]
    inputs = [layer["input_levels"] for layer in layers[1:]]
    return {
        "weight_bits": (weight_bits or _mean_bits(weights)) if quantized else None,
        "input_bits": _mean_bits(inputs) if quantized else None,
        "uncounted": sum(levels is None for levels in inputs) if quantized else 0,
        "most_weight_levels": max(filter(None, weights), default=None),
    }


def _mean_bits(levels: Sequence[int | None]) -> float | None:
    if not levels or all(count is None for count in levels):
        return None
    return float(np.mean([math.log2(count or COUNTED) for count in levels]))


def merge(path: Path, rows: Sequence[Result]) -> None:
    """Put the rows into results.jsonl, in the place of earlier ones of the same cells; others stay."""
    known = {str(entry.get("cell")): entry for entry in read_objects(path, "the results of a comparison")}
    known |= {entry["cell"]: entry for entry in rows}
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in known.values()))
