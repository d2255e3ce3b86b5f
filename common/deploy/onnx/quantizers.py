"""Quantizers in ONNX: weights as codes, activations by the operations of the method's own forward, in its order."""

import torch
from torch import Tensor, nn

from common.deploy.activations import clipped_grid, settled_scale
from common.deploy.onnx.nodes import Nodes
from common.deploy.packed.packing import code_bits, codes_of, levels_of
from common.errors import UserError
from common.quantizers.alignq import AlignAct
from common.quantizers.apot import APoTAct, APoTWeight
from common.quantizers.dorefa import DoReFaAct
from common.quantizers.layers import LearnedScale, QuantAct, WeightQuantizer
from common.quantizers.llsq import LLSQAct
from common.quantizers.lsq import LSQAct
from common.quantizers.rounding import FLOAT_BITS, SQRT_HALF
from common.quantizers.uniform import UniformAct


@torch.no_grad()
def write_weight(nodes: Nodes, conv: nn.Conv2d, name: str) -> str:
    """The float weights of a convolution, ``name.weight``; in the file they are codes wherever they are quantized.

    Evenly spaced levels are (code - offset) * step, as ``Grid.values`` computes them, uneven ones are looked up in a
    table; then they are multiplied by the scale of the layer or of each filter. The weights are the network's own, bit
    for bit.

    Raises:
        UserError: a weight or scale that is not finite or was never set, or a method unknown to ``packing``.
    """
    quantizer = getattr(conv, "weight_quantizer", None)
    if not isinstance(quantizer, WeightQuantizer):
        return nodes.floats(f"{name}.weight", conv.weight)
    if quantizer.bits == FLOAT_BITS:
        return nodes.floats(f"{name}.weight", quantizer(conv.weight))
    if isinstance(quantizer, LearnedScale):
        settled_scale(quantizer, f"{name}.weight_quantizer")
    levels = levels_of(quantizer)
    try:
        codes, scales = codes_of(quantizer, conv.weight, levels)
    except ValueError as error:
        raise UserError(f"{name}: {error}; expected a network with finite weights") from None
    stored = nodes.codes(f"{name}.codes", codes, code_bits(levels))
    output = f"{name}.weight"
    last = [] if torch.equal(scales, torch.ones(1)) else [("scaled", "Mul", (_by_filter(scales),))]
    if isinstance(quantizer, APoTWeight):
        index = nodes.add("Cast", [stored], f"{output}.index", to=nodes.types.INT32)
        value = nodes.add("Gather", [nodes.floats(f"{output}.table", levels), index], f"{output}.looked_up")
        return nodes.chain(output, value, *last)
    lowest, step = levels_of(quantizer, torch.float64)[:2].tolist()
    step -= lowest
    number = nodes.add("DequantizeLinear", [stored, nodes.floats(f"{output}.one", 1.0)], f"{output}.number")
    return nodes.chain(output, number, ("centred", "Add", (lowest / step,)), ("level", "Mul", (step,)), *last)


def _by_filter(scales: Tensor) -> Tensor:
    """(1,) for the layer, or (filters, 1, 1, 1) to multiply each filter."""
    return scales if len(scales) == 1 else scales.view(-1, 1, 1, 1)


def write_activation(nodes: Nodes, act: QuantAct, name: str, value: str) -> str:
    """The quantized ``value``, under the quantizer's ``name``.

    Raises:
        UserError: a learned scale that was never set, or a method that is not listed here.
    """
    scale: Tensor = settled_scale(act, name) if isinstance(act, LearnedScale) else torch.ones(())
    match act:
        case AlignAct():
            return _align(nodes, act, name, value)
        case UniformAct() | DoReFaAct():
            end, grid = clipped_grid(act)
            unit = grid.scale
            return nodes.chain(
                name,
                value,
                ("clipped", "Clip", (0.0, end)),
                ("position", "Mul", (unit,)),
                ("code", "Round", ()),
                ("level", "Div", (unit,)),
            )
        case LSQAct() | LLSQAct():
            return nodes.chain(
                name,
                value,
                ("position", "Div", (scale,)),
                ("rounded", "Round", ()),
                ("code", "Clip", (act.low, act.high)),
                ("level", "Mul", (scale,)),
            )
        case APoTAct():
            return _apot(nodes, act, name, value, scale)
    raise UserError(f"{name}: the ONNX export does not know activations of {type(act).__name__}")


def _align(nodes: Nodes, act: AlignAct, name: str, value: str) -> str:
    """The steps of ``alignq.aligned_position`` and ``Grid.values``."""
    grid, half = act.grid, ("scaled", "Mul", (SQRT_HALF,))
    if grid is None:
        return nodes.chain(name, value, half, ("erf", "Erf", ()), ("spread", "Mul", (act.act_range,)))
    return nodes.chain(
        name,
        value,
        half,
        ("erf", "Erf", ()),
        ("spread", "Mul", (act.act_range * grid.scale,)),
        ("position", "Add", (grid.offset,)),
        ("code", "Round", ()),
        ("centred", "Add", (-grid.offset,)),
        ("level", "Mul", (1 / grid.scale,)),
    )


def _apot(nodes: Nodes, act: APoTAct, name: str, value: str, scale: Tensor) -> str:
    """The number of thresholds below v, a bit at a time from the highest: bisection of 2^k - 1 of them, k steps."""
    alpha = nodes.floats(f"{name}.scale", scale)
    relative = nodes.add("Div", [value, alpha], f"{name}.relative")
    thresholds = nodes.floats(f"{name}.thresholds", act.thresholds)
    code = nodes.integers(f"{name}.code", 0, bits=32)
    for bit in reversed(range(act.bits)):
        at = f"{name}.bit{bit}"
        middle = nodes.add("Add", [code, nodes.integers(f"{at}:middle", 2**bit - 1, bits=32)], f"{at}.middle")
        threshold = nodes.add("Gather", [thresholds, middle], f"{at}.threshold")
        passed = nodes.add("Greater", [relative, threshold], f"{at}.passed")
        digit = nodes.add("Cast", [passed], f"{at}.digit", to=nodes.types.INT32)
        worth = nodes.add("Mul", [digit, nodes.integers(f"{at}:worth", 2**bit, bits=32)], f"{at}.worth")
        code = nodes.add("Add", [code, worth], f"{at}.code")
    level = nodes.add("Gather", [nodes.floats(f"{name}.levels", act.levels), code], f"{name}.level")
    return nodes.add("Mul", [level, alpha], name)
