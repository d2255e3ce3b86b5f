"""DoReFa-Net (Zhou et al., 2016, arXiv 1606.06160): tanh-normalised weights, activations clipped to [0, 1].

Its gradient quantizer is off, and its first and last layers follow the policy of all methods here.
"""

from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.rounding import Grid, binarize, exact_grid, handed_out, round_clipped, straight_if
from common.quantizers.scheme import AFTER_RELU, Method, Scheme
from common.quantizers.steps import Step, clipped_steps


def _tanh_and_peak(w: Tensor) -> tuple[Tensor, Tensor]:
    """tanh w and max |tanh w|; infinity stands for a maximum of 0, so that dividing by it gives 0."""
    t = torch.tanh(w)
    peak = t.abs().amax()
    return t, torch.where(peak == 0, torch.inf, peak)


class _TanhWeight(torch.autograd.Function):
    """Keeps the weight itself. The maximum is differentiated; equal maxima share its gradient evenly."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(w)
        t, peak = _tanh_and_peak(w)
        return handed_out(grid.values(grid.codes(t / peak)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        t, peak = _tanh_and_peak(w)
        at_peak = t.abs() == peak
        share = (grad * t / peak).sum() / at_peak.sum().clamp_min(1)
        return (grad - share * at_peak * t.sign()) * (1 - t * t) / peak, None


class _BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return binarize(w, w.abs().mean())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def dorefa_weight(w: Tensor, bits: int) -> Tensor:
    """2 q_k(tanh w / (2 max|tanh w|) + 1/2) - 1 (equation 9), or E|w| sign(w) for one bit (equation 7).

    q_k rounds on the 2^k levels of [0, 1], straight-through. One bit is straight-through as a whole; sign(0) = +1.
    """
    return _BinaryWeight.apply(w) if bits == 1 else _TanhWeight.apply(w, exact_grid(bits, 1.0))


class DoReFaWeight(WeightQuantizer):
    def forward(self, w: Tensor) -> Tensor:
        return dorefa_weight(w, self.bits)

    def scales(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().mean().reshape(1) if self.bits == 1 else super().scales(weight)


class ScaledDoReFaWeight(DoReFaWeight):
    """For a layer behind which no BatchNorm restores the scale: times max |tanh w|, a constant to the gradient."""

    def forward(self, w: Tensor) -> Tensor:
        if self.bits == 1:
            return super().forward(w)
        scale = self.scales(w)
        return straight_if(scale == 0, super().forward(w) * scale, w)

    def scales(self, weight: Tensor) -> Tensor:
        return super().scales(weight) if self.bits == 1 else weight.detach().tanh().abs().amax().reshape(1)


class DoReFaAct(QuantAct):
    """q_k(clip(x, 0, 1)) (equation 11); gradient 1 on [0, 1], 0 outside."""

    def forward(self, x: Tensor) -> Tensor:
        return round_clipped(x, self.bits, 1.0)

    def steps(self) -> tuple[Step, ...]:
        return clipped_steps(self.bits, 1.0)


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return DoReFaWeight(bits)


def _scaled_weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return ScaledDoReFaWeight(bits)


def activation(bits: int, scheme: Scheme) -> QuantAct:
    return DoReFaAct(bits)


METHOD = Method(
    name="dorefa",
    placement=AFTER_RELU,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    weight=_weight,
    activation=activation,
    scaled_weight=_scaled_weight,
)
