"""Uniform quantization with nothing learned: the plain baseline.

Weights lie on the 2^k levels m (2 c / n - 1), c in {0..n}, m = max |w|; activations, behind their ReLU, on the 2^k
levels act_range c / n. Where no BatchNorm normalises activations, they are standardised by their running statistics and
lie on levels b (2 c / n - 1), b the range of least squared error on a normal variable (Max, 1960, table II).
"""

from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.rounding import Grid, exact_grid, handed_out, round_clipped, round_ste
from common.quantizers.scheme import AFTER_RELU, Method, Scheme
from common.quantizers.standardised import StandardisedAct
from common.quantizers.steps import Add, Clip, Multiply, Round, Step, clipped_steps


class _UniformWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid) -> Tensor:
        peak = w.abs().amax()
        unit = w / peak.clamp_min(torch.finfo(w.dtype).tiny)
        return handed_out(grid.values(grid.codes(unit)).mul_(peak))

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


NORMAL_STEPS = (1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)  # Max's, for 1 to 8 bits


class StandardUniformAct(StandardisedAct):
    """Gradient 1 where nothing is clipped, 0 outside."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.high = NORMAL_STEPS[bits - 1] * (2**bits - 1) / 2
        self.grid = exact_grid(bits, self.high)

    def quantize(self, u: Tensor) -> Tensor:
        kept = u.clamp(-self.high, self.high)
        return self.grid.values(round_ste(kept * self.grid.scale + self.grid.offset))

    def standard_steps(self) -> tuple[Step, ...]:
        scale, offset = self.grid.scale, self.grid.offset
        clipped = Clip(-self.high, self.high), Multiply(scale), Add(offset)
        return *clipped, Round(), Add(-offset), Multiply(1 / scale)


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return UniformWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return UniformAct(bits, scheme.act_range)


def _unnormalised(bits: int, scheme: Scheme, positive: bool) -> QuantAct:
    return StandardUniformAct(bits)


METHOD = Method(
    name="uniform",
    placement=AFTER_RELU,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    weight=_weight,
    activation=_activation,
    unnormalised=_unnormalised,
)
