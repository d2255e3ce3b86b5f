"""Uniform quantization with nothing learned: the plain baseline.

Weights lie on the 2^k levels m (2 c / n - 1), c in {0..n}, m = max |w|; activations, behind their ReLU, on the 2^k
levels act_range c / n.
"""

from typing import Any

import torch
from torch import Tensor

from common.quantizers.layers import QuantAct, WeightQuantizer
from common.quantizers.rounding import Grid, exact_grid, round_clipped
from common.quantizers.scheme import AFTER_RELU, Method, Scheme
from common.quantizers.steps import Step, clipped_steps


class _UniformWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid) -> Tensor:
        peak = w.abs().amax()
        unit = w / peak.clamp_min(torch.finfo(w.dtype).tiny)
        return grid.values(grid.codes(unit)).mul_(peak)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def uniform_weight(w: Tensor, bits: int) -> Tensor:
    """Round w on the 2^bits evenly spaced levels of [-max|w|, max|w|], the ends included.

    The gradient is straight-through, and max |w| counts as a constant. All-zero weights stay zero.
    """
    return _UniformWeight.apply(w, exact_grid(bits, 1.0))


class UniformWeight(WeightQuantizer):
    def forward(self, w: Tensor) -> Tensor:
        return uniform_weight(w, self.bits)

    def scales(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().amax().reshape(1)


class UniformAct(QuantAct):
    """Levels act_range c / n; gradient 1 on [0, act_range], 0 outside."""

    def __init__(self, bits: int, act_range: float) -> None:
        super().__init__(bits)
        self.act_range = act_range

    def forward(self, x: Tensor) -> Tensor:
        return round_clipped(x, self.bits, self.act_range)

    def steps(self) -> tuple[Step, ...]:
        return clipped_steps(self.bits, self.act_range)

    def settings(self) -> tuple[object, ...]:
        return (self.act_range,)


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return UniformWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return UniformAct(bits, scheme.act_range)


METHOD = Method(
    name="uniform",
    placement=AFTER_RELU,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    weight=_weight,
    activation=_activation,
)
