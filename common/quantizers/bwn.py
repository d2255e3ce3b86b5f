"""Binary weights (BWN of XNOR-Net; Rastegari et al., 2016, arXiv 1603.05279).

bwn has one scale per layer, bwnf one per filter, as in the paper. Weights have one bit at whatever width below 32 is
asked for; activations, which the paper leaves float, are DoReFa's.
"""

from typing import Any

import torch
from torch import Tensor

from common.quantizers import dorefa
from common.quantizers.base import WeightQuantizer
from common.quantizers.rounding import binarize
from common.quantizers.scheme import AFTER_RELU, Method, Scheme


def _scales(w: Tensor, per_filter: bool) -> Tensor:
    dims = tuple(range(1 if per_filter else 0, w.dim()))
    return w.abs().mean(dim=dims, keepdim=True)


class _BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, per_filter: bool) -> Tensor:
        ctx.save_for_backward(w)
        ctx.per_filter = per_filter
        return binarize(w, _scales(w, per_filter))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        alpha = _scales(w, ctx.per_filter)
        return grad * (alpha * (w.abs() <= 1) + alpha.numel() / w.numel()), None


def binary_weight(w: Tensor, per_filter: bool) -> Tensor:
    """alpha sign(w), alpha the mean of |w| over a filter or over the layer (equations 4 and 6); sign(0) = +1.

    With n weights to a scale, the gradient is dC/dw_i = dC/dw~_i (1/n + alpha 1[|w_i| <= 1]) (section 3.1).

    Args:
        w: (filters, ...) weights.
    """
    return _BinaryWeight.apply(w, per_filter)


class BinaryWeight(WeightQuantizer):
    def __init__(self, per_filter: bool) -> None:
        super().__init__(bits=1)
        self.per_filter = per_filter

    def forward(self, w: Tensor) -> Tensor:
        return binary_weight(w, self.per_filter)

    def scales(self, weight: Tensor) -> Tensor:
        return _scales(weight.detach(), self.per_filter).flatten()


def _per_layer(bits: int, scheme: Scheme) -> WeightQuantizer:
    return BinaryWeight(per_filter=False)


def _per_filter(bits: int, scheme: Scheme) -> WeightQuantizer:
    return BinaryWeight(per_filter=True)


METHOD_PER_LAYER = Method(
    name="bwn",
    placement=AFTER_RELU,
    weight_bits=range(1, 9),
    act_bits=dorefa.METHOD.act_bits,
    weight=_per_layer,
    activation=dorefa.activation,
    reported_weight_bits=1,
)

METHOD_PER_FILTER = Method(
    name="bwnf",
    placement=AFTER_RELU,
    weight_bits=range(1, 9),
    act_bits=dorefa.METHOD.act_bits,
    weight=_per_filter,
    activation=dorefa.activation,
    reported_weight_bits=1,
)
