"""What a quantized network really multiplies: distinct weight levels and distinct inputs of its layers."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.measure.observe import observe
from common.quantizers.base import WeightQuantizer
from common.quantizers.layers import QuantLayer

RESOLUTION = 1e-5  # relative to the largest magnitude; values closer than that are one level summed in another order


@dataclass(frozen=True)
class LayerLevels:
    """Of one layer: distinct weights, relative to the scale of their filter, and distinct inputs; None: float."""

    layer: str
    weight_levels: int | None
    input_levels: int | None

    def row(self) -> dict[str, Any]:
        """The fields, with the effective bits: log2 of each count."""
        bits = {
            f"{what}_bits": None if levels is None else round(math.log2(levels), 2)
            for what, levels in (("weight", self.weight_levels), ("input", self.input_levels))
        }
        return {**asdict(self), **bits}


def distinct(values: Tensor) -> int:
    """The number of distinct values, up to rounding errors of summation."""
    values = values.detach().float().flatten()
    scale = values.abs().max().clamp_min(torch.finfo(torch.float32).tiny) * RESOLUTION
    return len(torch.unique(torch.round(values / scale)))


@torch.no_grad()
def measure(model: nn.Module, images: Tensor, float_above: int = 4096) -> list[LayerLevels]:
    """Count the levels of every convolution and quantized Linear layer on a batch, in evaluation mode.

    Args:
        images: (B, C, H, W), a few dozen are enough.
        float_above: a tensor with more distinct values than this counts as float.
    """
    inputs: dict[str, int] = {}

    def look(name: str, module: Any, x: Tensor) -> None:
        inputs[name] = distinct(module.input_quantizer(x) if isinstance(module, QuantLayer) else x)

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | QuantLayer)}
    observe(model, layers, look, images)

    def weight_levels(module: nn.Module) -> int | None:
        if not isinstance(module, QuantLayer) or isinstance(module.weight_quantizer, nn.Identity):
            return None
        values, quantizer = module.weight_quantizer(module.weight), module.weight_quantizer
        if isinstance(quantizer, WeightQuantizer) and quantizer.has_codes:
            scales = quantizer.scales(module.weight)
            if len(scales) > 1:  # one for each filter: a code stands for as many values, and is one level
                values = values.flatten(1) / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        return distinct(values)

    return [
        LayerLevels(name, weight_levels(module), inputs[name] if inputs[name] <= float_above else None)
        for name, module in layers.items()
    ]


def summary_lines(levels: list[LayerLevels]) -> list[str]:
    """A line per layer for the log."""

    def cell(count: int | None) -> str:
        return "float" if count is None else f"{count} ({math.log2(count):.2f} bits)"

    return [
        f"levels of {entry.layer}: weights {cell(entry.weight_levels)}, inputs {cell(entry.input_levels)}"
        for entry in levels
    ]
