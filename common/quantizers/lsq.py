"""LSQ, learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153)."""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.learned_scale import LearnedScale, SteppedAct, SteppedWeight
from common.quantizers.rounding import handed_out, widen
from common.quantizers.scheme import IN_CONV, Method, Scheme


class _LSQ(torch.autograd.Function):
    """Keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, gain: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.gain = low, high, gain
        return handed_out((widen(x) / step).round_().clamp_(low, high).mul_(step).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, step = ctx.saved_tensors
        v = widen(x) / step
        inside = (v > ctx.low) & (v < ctx.high)
        codes = v.round().clamp_(ctx.low, ctx.high)
        slope = torch.where(inside, codes - v, codes)
        grad_step = slope.mul_(grad).sum().mul_(ctx.gain).to(step.dtype)
        return torch.where(inside, grad, 0), grad_step, None, None, None


def lsq(x: Tensor, step: Tensor, low: int, high: int, gain: float = 1.0) -> Tensor:
    """step * round(clip(x / step, low, high)) (equations 1 and 2).

    Args:
        step: 0-dimensional, positive.
        low, high: -Q_N and Q_P of the paper.
        gain: factor of the step's gradient, 1 / sqrt(N Q_P) in the paper (section 2.2).
    Returns:
        Levels in x's shape and type. Gradients: to x, 1 strictly inside the range, 0 elsewhere (equation 5); to the
        step, round(x / step) - x / step inside, low or high elsewhere (equation 3), summed and times ``gain``.
    """
    return _LSQ.apply(x, step, low, high, gain)


class _LSQQuantizer(LearnedScale):
    low: int
    high: int

    def initial_scale(self, x: Tensor) -> Tensor:
        """2 E|x| / sqrt(Q_P) (section 2.1)."""
        return 2 * x.abs().mean(dtype=torch.float64) / math.sqrt(self.high)

    @abstractmethod
    def features(self, x: Tensor) -> int:
        """N of the gradient's scale."""

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 / math.sqrt(max(self.features(x), 1) * self.high)
        return lsq(x, self.current_scale(x), self.low, self.high, gain)


class LSQWeight(_LSQQuantizer, SteppedWeight):
    """N is the number of weights."""

    def features(self, x: Tensor) -> int:
        return x.numel()


class LSQAct(_LSQQuantizer, SteppedAct):
    """For a layer's input, signed if not behind a ReLU; N is the number of features of one sample."""

    def features(self, x: Tensor) -> int:
        return x[:1].numel()


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return LSQWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return LSQAct(bits)


def _unnormalised(bits: int, scheme: Scheme, positive: bool) -> QuantAct:
    return LSQAct(bits, signed=not positive)


METHOD = Method(
    name="lsq",
    placement=IN_CONV,
    weight_bits=range(2, 9),
    act_bits=range(2, 9),
    weight=_weight,
    activation=_activation,
    unnormalised=_unnormalised,
)
