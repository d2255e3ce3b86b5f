"""Quantizers in ONNX: weights as codes, activations by the steps of the method's own forward, in its order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.deploy.onnx.nodes import Nodes
from common.deploy.packed.packing import code_bits
from common.errors import UserError
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.steps import Lookup, Search, Step


@torch.no_grad()
def write_weight(nodes: Nodes, layer: Any, name: str) -> str:
    """The float weights of a layer, ``name.weight``; in the file they are codes wherever they are quantized.

    Levels that (code + offset) * step gives exactly are computed so, others are looked up in a table; then they are
    multiplied by the scale of the layer or of each filter. The weights are the network's own, bit for bit.

    Raises:
        UserError: a weight that is not finite.
    """
    quantizer = getattr(layer, "weight_quantizer", None)
    if not isinstance(quantizer, WeightQuantizer):
        return nodes.floats(f"{name}.weight", layer.weight)
    if not quantizer.has_codes:
        return nodes.floats(f"{name}.weight", quantizer(layer.weight))
    levels, scales = quantizer.levels(), quantizer.scales(layer.weight)
    try:
        codes = quantizer.codes(layer.weight)
    except ValueError as error:
        raise UserError(f"{name}: {error}; expected a network with finite weights") from None
    stored = nodes.codes(f"{name}.codes", codes, code_bits(levels))
    output = f"{name}.weight"
    last = [] if torch.equal(scales, torch.ones(1)) else [("scaled", "Mul", (_by_filter(scales, layer.weight.ndim),))]
    lowest, second = quantizer.levels(torch.float64)[:2].tolist()
    offset, step = lowest / (second - lowest), second - lowest
    if torch.equal((torch.arange(len(levels)) + torch.tensor(offset)) * torch.tensor(step), levels):
        number = nodes.add("DequantizeLinear", [stored, nodes.floats(f"{output}.one", 1.0)], f"{output}.number")
        return nodes.chain(output, number, ("centred", "Add", (offset,)), ("level", "Mul", (step,)), *last)
    index = nodes.add("Cast", [stored], f"{output}.index", to=nodes.types.INT32)
    level = f"{output}.level" if last else output
    value = nodes.add("Gather", [nodes.floats(f"{output}.table", levels), index], level)
    return nodes.chain(output, value, *last) if last else value


def _by_filter(scales: Tensor, dimensions: int) -> Tensor:
    """(1,) for the layer, or (filters, 1, ...) to multiply each filter."""
    return scales if len(scales) == 1 else scales.view(-1, *[1] * (dimensions - 1))


def write_activation(nodes: Nodes, act: QuantAct, name: str, value: str) -> str:
    """The quantized ``value``, under the quantizer's ``name``.

    Raises:
        UserError: a quantizer that does not say its steps.
    """
    return write_steps(nodes, act.steps(), name, value)


def write_steps(nodes: Nodes, steps: Sequence[Step], name: str, value: str) -> str:
    for place, step in enumerate(steps):
        output = name if place == len(steps) - 1 else f"{name}.step{place}"
        if isinstance(step, Search):
            value = _search(nodes, step.thresholds, value, output)
        elif isinstance(step, Lookup):
            index = nodes.add("Cast", [value], f"{output}.index", to=nodes.types.INT32)
            value = nodes.add("Gather", [nodes.floats(f"{output}.table", step.table), index], output)
        else:
            value = nodes.chain(output, value, ("operand", step.onnx, tuple(step.operands())))
    return value


def _search(nodes: Nodes, thresholds: Tensor, value: str, name: str) -> str:
    """The number of thresholds below the value, a bit at a time from the highest: bisection of 2^k - 1 in k steps."""
    bits = len(thresholds).bit_length()
    beyond = thresholds.new_full((2**bits - 1 - len(thresholds),), torch.inf)
    table = nodes.floats(f"{name}.thresholds", torch.cat((thresholds, beyond)))
    code = nodes.integers(f"{name}.code", 0, bits=32)
    for bit in reversed(range(bits)):
        at = f"{name}.bit{bit}"
        middle = nodes.add("Add", [code, nodes.integers(f"{at}:middle", 2**bit - 1, bits=32)], f"{at}.middle")
        threshold = nodes.add("Gather", [table, middle], f"{at}.threshold")
        passed = nodes.add("Greater", [value, threshold], f"{at}.passed")
        digit = nodes.add("Cast", [passed], f"{at}.digit", to=nodes.types.INT32)
        worth = nodes.add("Mul", [digit, nodes.integers(f"{at}:worth", 2**bit, bits=32)], f"{at}.worth")
        code = nodes.add("Add", [code, worth], f"{at}.code")
    return nodes.add("Cast", [code], name, to=nodes.types.FLOAT)
