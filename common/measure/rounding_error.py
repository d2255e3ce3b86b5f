"""How far float32 rounding can move the real-valued codes of a network, at every single position.

A network is run in float64, and beside every value goes a bound of what the same layers in float32 can be off by, in
whatever order and with BatchNorm folded or not. With u = 2^-24, the unit roundoff:

- a sum of K products is off by lambda sqrt(K) u sum |w| |x| (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, on inner
  products: independent rounding errors of mean zero exceed it with a probability below 2 K exp(-lambda^2 / 2)).
  lambda is 8: below 3 K 10^-14. What the inputs are off by adds sum |w| |error|;
- a level is off by at most 3 u times the largest: a rounded step, a rounded scale and products;
- BatchNorm, x s + (b - m s): |s| times the error, and 8 u (|x s| + |m s| + |b|) for root, division, products and sums;
- an addition: both errors, and u times the sum; a mean of K values: their mean error, and (K + 1) u mean |x|;
- the real-valued code p ascends with x, so an error e of x moves it by at most max(p(x + e) - p(x), p(x) - p(x - e)),
  and 8 u 2^k more for the steps of p itself.

Every quantizer passes on given codes, so that no error is carried from layer to layer. Where two float32 forms give
different codes for the same input codes, a threshold lies within the bound of the float64 value, or one form is wrong.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.deploy.graph import batch_norm_scale_shift
from common.deploy.operations import Operation, operations
from common.deploy.packed.packing import from_codes
from common.errors import UserError
from common.quantizers.base import QuantAct, WeightQuantizer

FORM = "the bound of rounding errors"
UNIT = 2.0**-24
LAMBDA = 8.0
FOLDED = 16  # roundings of a weight that BatchNorm is folded into, counted as terms of the sum


@dataclass(frozen=True)
class Bounded:
    """Values in float64, and at least what float32 can be off by; in one shape."""

    value: Tensor
    error: Tensor


@torch.no_grad()
def bounded_positions(source: fx.GraphModule, images: Tensor, codes: dict[str, Tensor]) -> dict[str, Bounded]:
    """The real-valued code of every activation quantizer of a traced network in float64, with its bound.

    Args:
        codes: of every quantizer by name, int32; what the layers behind it are given.
    """
    bounds = _Bounds(source, codes)
    bounds.run(images)
    return bounds.found


def weight_in_float64(conv: nn.Conv2d) -> tuple[Tensor, float]:
    """The weight that the float32 weight is the rounded value of, and by how much that may be off."""
    quantizer = getattr(conv, "weight_quantizer", None)
    if not isinstance(quantizer, WeightQuantizer) or not quantizer.has_codes:
        weight = conv.weight if quantizer is None else quantizer(conv.weight)
        return weight.double(), 0.0
    codes, scales = quantizer.codes(conv.weight), quantizer.scales(conv.weight).double()
    weight = from_codes(codes, scales, quantizer.levels(torch.float64))
    return weight, 3 * UNIT * float(weight.abs().max())


class _Bounds:
    """Walks the graph. Behind an operation whose errors are not known, a value is the name of that operation."""

    def __init__(self, source: fx.GraphModule, codes: dict[str, Tensor]) -> None:
        self.source, self.codes = source, codes
        self.found: dict[str, Bounded] = {}
        self.rules: dict[str, Callable[..., Bounded]] = {
            "convolution": self.convolution,
            "batch_norm": batch_norm,
            "quantizer": self.quantizer,
            "identity": same_for_both,
            "relu": lambda operation, x: Bounded(x.value.relu(), x.error),
            "relu6": lambda operation, x: Bounded(x.value.clamp(0, 6), x.error),
            "add": added,
            "concatenate": same_for_both,
            "max_pool": same_for_both,
            "average_pool": averaged,
            "adaptive_average_pool": averaged,
            "mean": averaged,
            "flatten": same_for_both,
            "expand": same_for_both,
        }

    def run(self, images: Tensor) -> None:
        values: dict[Any, Bounded | str] = {}
        for operation in operations(self.source):
            inputs = [values.get(one, one) for one in operation.inputs]
            lost = [one for one in inputs if isinstance(one, str)]
            if operation.kind == "input":
                values[operation.node] = Bounded(images.double(), torch.zeros_like(images, dtype=torch.float64))
            elif lost and (operation.name in self.codes or f"{operation.name}.input_quantizer" in self.codes):
                raise operation.refuse(f"no bound of rounding errors is known behind {lost[0]}")
            elif lost or not self.knows(operation):
                values[operation.node] = lost[0] if lost else operation.name
            else:
                values[operation.node] = self.rules[operation.kind](operation, *inputs)

    def convolution(self, operation: Operation, x: Bounded) -> Bounded:
        conv, own = operation.layer, f"{operation.name}.input_quantizer"
        if own in self.codes:
            x = self.quantized(own, conv.input_quantizer, x)
        weight, off = weight_in_float64(conv)
        growth = LAMBDA * math.sqrt(weight[0].numel() + FOLDED) * UNIT

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return conv._conv_forward(x, weight, bias)

        error = convolve(x.error, weight.abs()) + convolve(x.value.abs(), weight.abs() * growth + off)
        return Bounded(convolve(x.value, weight, None if conv.bias is None else conv.bias.double()), error)

    def knows(self, operation: Operation) -> bool:
        return operation.kind in self.rules and (operation.kind != "quantizer" or operation.name in self.codes)

    def quantizer(self, operation: Operation, x: Bounded) -> Bounded:
        return self.quantized(operation.name, operation.layer, x)

    def quantized(self, name: str, act: QuantAct, x: Bounded) -> Bounded:
        if name in self.found:
            raise UserError(f"{name}: used more than once; codes are compared where every quantizer has one use")
        at = act.position(x.value)
        error = x.error + 4 * UNIT * x.value.abs()
        above, below = (act.position(x.value + sign * error) for sign in (1, -1))
        self.found[name] = Bounded(at, torch.maximum(above - at, at - below) + 8 * UNIT * 2**act.bits)
        levels = act.levels(self.codes[name])
        return Bounded(levels, torch.full_like(levels, 3 * UNIT * float(levels.abs().max())))


def batch_norm(operation: Operation, x: Bounded) -> Bounded:
    bn = operation.layer
    shape = (-1,) + (1,) * (x.value.dim() - 2)
    scale, shift = (part.view(shape) for part in batch_norm_scale_shift(bn))
    bias = bn.bias.double().view(shape) if bn.affine else torch.zeros(())
    value = x.value * scale + shift
    rounded = (x.value * scale).abs() + (shift - bias).abs() + bias.abs()
    return Bounded(value, scale.abs() * x.error + 8 * UNIT * rounded)


def added(operation: Operation, *terms: Bounded | float) -> Bounded:
    operation.require(FORM, alpha=1)
    one, other = (
        term if isinstance(term, Bounded) else Bounded(torch.tensor(term).double(), torch.tensor(UNIT * abs(term)))
        for term in terms
    )
    value = one.value + other.value
    return Bounded(value, one.error + other.error + UNIT * value.abs())


def averaged(operation: Operation, x: Bounded) -> Bounded:
    value, error, size = (operation.compute(part) for part in (x.value, x.error, x.value.abs()))
    if operation.kind == "average_pool":
        count = math.prod(operation.pair("kernel_size"))
    elif operation.kind == "mean":
        operation.require(FORM, dtype=None)
        count = x.value.numel() // value.numel()
    else:  # windows of uneven size overlap by a row and a column
        sides = zip(x.value.shape[2:], value.shape[2:], strict=True)
        count = math.prod(-(-side // windows) + (side % windows > 0) for side, windows in sides)
    return Bounded(value, error.abs() + (count + 1) * UNIT * size.abs())


def same_for_both(operation: Operation, *inputs: Bounded) -> Bounded:
    """For what only moves values, or takes the largest of several, whose error is at most the largest error."""
    values, errors = ([getattr(x, part) for x in inputs] for part in ("value", "error"))
    return Bounded(operation.compute(*values), operation.compute(*errors))
