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
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.deploy import activations
from common.deploy.graph import batch_norm_scale_shift
from common.deploy.packed.packing import codes_of, from_codes, levels_of
from common.quantizers.layers import QuantAct, QuantConv2d, WeightQuantizer

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
    if not isinstance(quantizer, WeightQuantizer) or quantizer.bits > 8:
        weight = conv.weight if quantizer is None else quantizer(conv.weight)
        return weight.double(), 0.0
    codes, scales = codes_of(quantizer, conv.weight, levels_of(quantizer))
    weight = from_codes(codes, scales.double(), levels_of(quantizer, torch.float64))
    return weight, 3 * UNIT * float(weight.abs().max())


class _Bounds(fx.Interpreter):
    """Values are ``Bounded``, and ``None`` behind the last quantizer, where nobody asks any more."""

    def __init__(self, source: fx.GraphModule, codes: dict[str, Tensor]) -> None:
        super().__init__(source)
        self.codes = codes
        self.found: dict[str, Bounded] = {}

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Bounded:
        images = super().placeholder(target, args, kwargs).double()
        return Bounded(images, torch.zeros_like(images))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Bounded | None:
        layer, x = self.fetch_attr(target), args[0]
        if x is None or isinstance(layer, nn.Linear | nn.BatchNorm1d):
            return None
        match layer:
            case nn.Conv2d():
                return self.convolution(target, layer, x)
            case nn.BatchNorm2d():
                return batch_norm(layer, x)
            case QuantAct() if target in self.codes:
                return self.quantizer(target, layer, x)
            case nn.ReLU():
                return Bounded(x.value.relu(), x.error)
            case nn.AvgPool2d():
                return averaged(layer, x)
        return Bounded(layer(x.value), layer(x.error))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Bounded | None:
        if target in (F.relu, torch.relu):
            return Bounded(args[0].value.relu(), args[0].error)
        if target in (operator.add, torch.add):
            value = args[0].value + args[1].value
            return Bounded(value, args[0].error + args[1].error + UNIT * value.abs())
        if target is torch.cat:
            return Bounded(*(torch.cat([getattr(x, part) for x in args[0]], args[1]) for part in ("value", "error")))
        if target is F.avg_pool2d:
            return averaged(nn.AvgPool2d(*args[1:], **kwargs), args[0])
        return Bounded(target(args[0].value, *args[1:], **kwargs), target(args[0].error, *args[1:], **kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Bounded | None:
        if target != "expand":
            return None  # the mean over pixels and flattening lead to the classifier
        return Bounded(*(getattr(part, target)(*args[1:], **kwargs) for part in (args[0].value, args[0].error)))

    def output(self, target: Any, args: Any, kwargs: Any) -> None:
        return None

    def convolution(self, name: str, conv: nn.Conv2d, x: Bounded) -> Bounded:
        own = f"{name}.input_quantizer"
        if isinstance(conv, QuantConv2d) and own in self.codes:
            x = self.quantizer(own, conv.input_quantizer, x)
        weight, off = weight_in_float64(conv)
        growth = LAMBDA * math.sqrt(weight[0].numel() + FOLDED) * UNIT

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return conv._conv_forward(x, weight, bias)

        error = convolve(x.error, weight.abs()) + convolve(x.value.abs(), weight.abs() * growth + off)
        return Bounded(convolve(x.value, weight, None if conv.bias is None else conv.bias.double()), error)

    def quantizer(self, name: str, act: Any, x: Bounded) -> Bounded:
        at = activations.position(act, x.value)
        error = x.error + 4 * UNIT * x.value.abs()
        above, below = (activations.position(act, x.value + sign * error) for sign in (1, -1))
        self.found[name] = Bounded(at, torch.maximum(above - at, at - below) + 8 * UNIT * 2**act.bits)
        levels = activations.levels_of(act, self.codes[name])
        return Bounded(levels, torch.full_like(levels, 3 * UNIT * float(levels.abs().max())))


def batch_norm(bn: nn.BatchNorm2d, x: Bounded) -> Bounded:
    scale, shift = (part.view(-1, 1, 1) for part in batch_norm_scale_shift(bn))
    bias = bn.bias.double().view(-1, 1, 1) if bn.affine else torch.zeros(())
    value = x.value * scale + shift
    rounded = (x.value * scale).abs() + (shift - bias).abs() + bias.abs()
    return Bounded(value, scale.abs() * x.error + 8 * UNIT * rounded)


def averaged(pool: nn.AvgPool2d, x: Bounded) -> Bounded:
    count: Any = pool.kernel_size
    return Bounded(pool(x.value), pool(x.error) + (count * count + 1) * UNIT * pool(x.value.abs()))
