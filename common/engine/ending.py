"""What a run says at its end: its bits, how much of it is quantized, its accuracy, its file and the next command."""

import math
import shlex
from pathlib import Path
from typing import Any

from common.command import as_typed
from common.config.options import Options
from common.measure.coverage import Coverage
from common.measure.effective_bits import LayerLevels
from common.models.foreign import is_of_file
from common.quantizers import METHODS
from common.quantizers.rounding import FLOAT_BITS

FLOAT = (FLOAT_BITS, FLOAT_BITS)


def lines_of(
    options: Options, summary: dict[str, Any], levels: list[LayerLevels], covered: Coverage, file: Path
) -> list[str]:
    """A table of a name and a value per line.

    Args:
        summary: as summary.json has it. levels: of the layers. file: the best epoch's checkpoint.
    """
    widths = options.quantization.bitW, options.quantization.abitW
    rows = {
        "bits": _bits(options, levels),
        "quantized": covered.shares(),
        "accuracy": _accuracy(options, summary),
        "file": str(file),
        "next": _next(options, file),
    }
    if widths == FLOAT:
        del rows["quantized"]
    return [f"{name:<10} {value}" for name, value in rows.items()]


def _bits(options: Options, levels: list[LayerLevels]) -> str:
    """Those asked for, and log2 of the distinct values that layers have: the fewest and the most.

    Where a method scales every filter, which makes more values than its codes have, it says the width of the codes.
    """
    widths = options.quantization.bitW, options.quantization.abitW
    if widths == FLOAT:
        return "32 (float)"
    reported = METHODS[options.quantization.method].reported_weight_bits
    weights = str(reported) if reported else _span([one.weight_levels for one in levels])
    inputs = _span([one.input_levels for one in levels[1:] if one.weight_levels is not None])  # without the image
    return f"weights {widths[0]}, effective {weights}; activations {widths[1]}, effective {inputs}"


def _span(counts: list[int | None]) -> str:
    found = [math.log2(count) for count in counts if count is not None]
    if not found:
        return "float"
    low, high = f"{min(found):.1f}", f"{max(found):.1f}"
    return low if low == high else f"{low} to {high}"


def _accuracy(options: Options, summary: dict[str, Any]) -> str:
    """Top-1 of the test set, or of the target's, and what re-alignment made of it."""
    best, last, select = summary["best"], summary["last"], options.data.select
    if options.pair is None:
        name, what, how, values = "test", "", "", (best["test_prec1"], last["test_prec1"])
    else:
        name, what = "target", f"{options.pair[0]} -> {options.pair[1]}, target "
        how, values = f"; protocol: {summary['protocol']}", (best["target"]["prec1"], last["target"]["prec1"])
    reads = ", which reads target labels" if select == "target" else ""
    adapted = summary.get("adapted", {}).get(name)
    return (
        f"{options.demo}{what}test top-1: {values[0]:.3f} at epoch {best['epoch']} (selected by {select}{reads}), "
        f"{values[1]:.3f} at the last epoch" + (f"; re-aligned: {adapted['prec1']:.3f}" if adapted else "") + how
    )


def _next(options: Options, file: Path) -> str:
    """What to type next: the file to ship, or of a float network the report."""
    if (options.quantization.bitW, options.quantization.abitW) == FLOAT:
        return shlex.join([*as_typed("report"), str(file.parents[1])])
    model = options.quantization.model
    typed = ["--model", model] if is_of_file(model) else []
    name = f"{file.parents[1].name}.safetensors"
    return shlex.join([*as_typed("export"), "--checkpoint", str(file), *typed, "--out", name])
