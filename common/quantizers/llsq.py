"""LLSQ, linear symmetric quantization with scales learned by their own rule (Zhao et al., ICLR 2020, H1lBj2VFPS).

A scale does not follow the task loss. Its gradient is made up so that descent lessens the squared quantization error:
+alpha^2 where alpha / 2 would be better than alpha and 2 alpha, -alpha^2 where 2 alpha would be, else 0.
"""

from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.learned_scale import LearnedScale, SteppedAct, SteppedWeight
from common.quantizers.rounding import handed_out, where_kept, widen
from common.quantizers.scheme import AFTER_RELU, Method, Scheme


def _relative_error(v: Tensor, factor: float, low: int, high: int) -> Tensor:
    """|x - Q_(factor alpha)(x)|^2 / alpha^2 of v = x / alpha: in these units no magnitude of x overflows."""
    quantized = (v / factor).round_().clamp_(low, high).mul_(factor)
    return quantized.sub_(v).square_().sum()


def scale_gradient(x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """The made-up gradient of alpha: alpha^2, -alpha^2 or 0. A tie leaves alpha where it is."""
    v = widen(x) / alpha
    half, same, double = (_relative_error(v, factor, low, high) for factor in (0.5, 1.0, 2.0))
    shrink = half < torch.minimum(same, double)
    grow = double < torch.minimum(same, half)
    direction = shrink.to(alpha.dtype) - grow.to(alpha.dtype)
    return direction * alpha.square().clamp_max(torch.finfo(alpha.dtype).max)


class _LLSQ(torch.autograd.Function):
    """Keeps its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.low, ctx.high = low, high
        return handed_out((widen(x) / alpha).round_().clamp_(low, high).mul_(alpha).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, alpha = ctx.saved_tensors
        v = widen(x) / alpha
        grad_x = where_kept(grad, v, ctx.low, ctx.high)
        grad_alpha = scale_gradient(x, alpha, ctx.low, ctx.high) if ctx.needs_input_grad[1] else None
        return grad_x, grad_alpha, None, None


def llsq(x: Tensor, alpha: Tensor, low: int, high: int) -> Tensor:
    """alpha * clip(round(x / alpha), low, high).

    Args:
        alpha: 0-dimensional, positive.
    Returns:
        Levels in x's shape and type. Gradients: to x, 1 where x / alpha lies in [low, high] and 0 outside; to alpha,
        ``scale_gradient``, whatever gradient comes in.
    """
    return _LLSQ.apply(x, alpha, low, high)


class _LLSQQuantizer(LearnedScale):
    low: int
    high: int
    follows_loss = False

    def forward(self, x: Tensor) -> Tensor:
        return llsq(x, self.current_scale(x), self.low, self.high)


class LLSQWeight(_LLSQQuantizer, SteppedWeight):
    """One scale per layer."""

    def initial_scale(self, x: Tensor) -> Tensor:
        return x.abs().amax() / -self.low


class LLSQAct(_LLSQQuantizer, SteppedAct):
    """For activations behind their ReLU."""

    def initial_scale(self, x: Tensor) -> Tensor:
        return x.abs().amax() / (self.high + 1 if self.bits >= 4 else 2 * self.high)


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return LLSQWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return LLSQAct(bits)


METHOD = Method(
    name="llsq",
    placement=AFTER_RELU,
    weight_bits=range(2, 9),
    act_bits=range(2, 9),
    weight=_weight,
    activation=_activation,
)
