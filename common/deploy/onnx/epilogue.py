"""From the real value behind a convolution to the integer of a quantizer's level, in operations that an engine fuses.

Which form it takes follows from what the quantizer says of itself. All give its codes, but for float rounding on a
threshold. Integers leave as float32, which holds them exactly.
"""

import torch
from torch import Tensor

from common.deploy.onnx.nodes import Nodes
from common.deploy.onnx.quantizers import write_steps
from common.deploy.onnx.smooth import odd_through, write_odd
from common.quantizers.base import QuantAct
from common.quantizers.polynomial import polynomial_through
from common.quantizers.steps import Search

BYTES = {"UINT8": (0, 255), "INT8": (-128, 127)}
MOST_KNEES = 4  # an engine fuses so many of them into the convolution, and is faster with erf than with more
MOST_COMPARED = 31  # thresholds; beyond, a search by bisection


def byte_type(low: int, high: int) -> str | None:
    """The name of ONNX's 8-bit type that holds the integers from low to high."""
    return next((name for name, (least, most) in BYTES.items() if least <= low and high <= most), None)


@torch.no_grad()
def write_integers(nodes: Nodes, act: QuantAct, integers: Tensor, name: str, value: str) -> str:
    """The integers, under the quantizer's ``name``, of real values.

    Args:
        integers: (T + 1,), of every code, as ``QuantAct.integers`` gives them.
    """
    low, high = act.code_range()
    thresholds, _ = act.thresholds()
    codes = torch.arange(low, high + 1)
    steps = thresholds.diff()
    even = len(steps) > 0 and torch.allclose(steps, steps.mean(), rtol=1e-6, atol=0)
    step = float(steps.mean()) if even else 0.0
    if even and torch.equal(integers, codes) and abs(float(thresholds[0]) / step - (low + 0.5)) < 1e-4:
        return _quantized(nodes, float(thresholds[0]) / (low + 0.5), low, high, name, value)
    code = f"{name}.code"
    if even:
        offset = low + 0.5 - float(thresholds[0]) / step
        value = nodes.chain(code, value, ("even", "Mul", (1 / step,)), ("from", "Add", (offset,)), *_rounded(low, high))
    elif (odd := odd_through(thresholds)) is not None:
        value = write_odd(nodes, odd, low, code, value)
    elif (knees := _knees(steps)) is not None:
        value = nodes.chain(code, value, *_warp(thresholds, knees, low), *_rounded(low, high))
    else:
        before, rounding, _ = act.encoding()
        if isinstance(rounding, Search) and len(thresholds) <= MOST_COMPARED:
            return _compared(nodes, rounding.thresholds, integers, name, write_steps(nodes, before, code, value))
        value = write_steps(nodes, (*before, rounding), code, value)
    return _levels(nodes, low, integers, name, value)


def _compared(nodes: Nodes, thresholds: Tensor, integers: Tensor, name: str, value: str) -> str:
    """The integers by a comparison with each threshold, the last that is passed having the last word."""
    level = nodes.floats(f"{name}:lowest", integers[0])
    for place, threshold in enumerate(thresholds, start=1):
        output = name if place == len(thresholds) else f"{name}.level{place}"
        passed = nodes.add("Greater", [value, nodes.floats(f"{output}:threshold", threshold)], f"{output}.passed")
        level = nodes.add("Where", [passed, nodes.floats(f"{output}:integer", integers[place]), level], output)
    return level


def _rounded(low: int, high: int) -> list[tuple[str, str, tuple[float, ...]]]:
    return [("kept", "Clip", (low, high)), ("rounded", "Round", ())]


def _quantized(nodes: Nodes, step: float, low: int, high: int, name: str, value: str) -> str:
    """round(clip(value / step)), as engines quantize: written as bytes with one scale, and read again with another."""
    kind = byte_type(low, high)
    if kind is None:
        return nodes.chain(name, value, ("steps", "Div", (step,)), *_rounded(low, high))
    if (low, high) != BYTES[kind]:
        value = nodes.chain(f"{name}.kept", value, ("kept", "Clip", (low * step, high * step)))
    return requantize(nodes, value, kind, name, step)


def requantize(nodes: Nodes, value: str, kind: str, name: str, step: float = 1.0) -> str:
    """round(value / step), saturated to bytes of a kind and read again as floats."""
    scale, zero = nodes.floats(f"{name}:step", step), nodes.bytewise(f"{name}:zero", 0, kind)
    return nodes.dequantize(nodes.add("QuantizeLinear", [value, scale, zero], f"{name}.stored"), kind, name)


def _knees(steps: Tensor) -> Tensor | None:
    """Where steps between thresholds change, if that is not too often."""
    knees = (~torch.isclose(steps[1:], steps[:-1], rtol=1e-6)).nonzero().flatten() + 1
    return knees if 0 < len(knees) <= MOST_KNEES else None


def _warp(thresholds: Tensor, knees: Tensor, low: int) -> list[tuple[str, str, tuple[float, ...]]]:
    """Piecewise linear from the thresholds to low + 1/2, low + 3/2, ...: of every knee an Add and a PRelu.

    Ascending functions x -> max(x, 0) + slope min(x, 0) change the slope below a knee relative to that above it; so
    they are applied from the highest knee down, on what the ones before made of x.
    """
    gains = 1 / thresholds.diff()
    top = float(gains[-1])
    steps: list[tuple[str, str, tuple[float, ...]]] = []
    at = thresholds.clone()
    for number in reversed(range(len(knees))):
        knee = at[knees[number]].clone()
        below = float(gains[knees[number] - 1] / gains[knees[number]])
        at = at - knee
        at = torch.where(at < 0, at * below, at)
        steps += [(f"knee{number}", "Add", (-float(knee),)), (f"slope{number}", "PRelu", (below,))]
    return [*steps, ("gain", "Mul", (top,)), ("base", "Add", (low + 0.5 - float(at[0]) * top,))]


def _levels(nodes: Nodes, low: int, integers: Tensor, name: str, code: str) -> str:
    """The integers of codes: a multiple of them, a polynomial that rounds to them, or else a table."""
    gaps = integers.diff()
    if bool((gaps == gaps[0]).all()):
        gap, first = int(gaps[0]), int(integers[0])
        steps: list[tuple[str, str, tuple[float, ...]]] = [("times", "Mul", (gap,))] if gap != 1 else []
        steps += [("from", "Add", (first - gap * low,))] if first != gap * low else []
        return nodes.chain(name, code, *steps) if steps else nodes.add("Identity", [code], name)
    if (fit := polynomial_through(integers)) is not None:
        middle, last = low + fit.half, low + fit.codes - 2
        leading, *others = fit.coefficients
        at = nodes.chain(f"{name}.at", code, ("middle", "Sub", (middle,)), ("half", "Mul", (1 / fit.half,)))
        value = nodes.add("Mul", [at, nodes.floats(f"{name}:leading", leading)], f"{name}.leading")
        for place, one in enumerate(others[:-1]):
            value = nodes.chain(f"{name}.plus{place}", value, ("power", "Add", (one,)))
            value = nodes.add("Mul", [value, at], f"{name}.times{place}")
        end = nodes.chain(
            f"{name}.end", code, ("last", "Sub", (last,)), ("over", "Relu", ()), ("gap", "Mul", (fit.beyond,))
        )
        value = nodes.add(
            "Add", [nodes.chain(f"{name}.inner", value, ("constant", "Add", (others[-1],))), end], f"{name}.sum"
        )
        return nodes.add("Round", [value], name)
    index = nodes.add("Cast", [nodes.chain(f"{name}.from", code, ("first", "Sub", (low,)))], f"{name}.index", to=6)
    return nodes.add("Gather", [nodes.floats(f"{name}.table", integers), index], name)
