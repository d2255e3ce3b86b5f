"""Convolution -> BatchNorm -> quantizer as integer thresholds per channel.

A convolution of integers gives an integer sum A. What follows maps it, channel by channel, to the code of s A + t,
which is monotone in A. So the code is the number of the quantizer's thresholds that A has passed: for s > 0 a
threshold x is passed from s A + t >= x on. A negative s reverses the comparison, a zero one makes the code a constant.
On a threshold the quantizer says whether it counts as passed: rounding goes to the even code. A ReLU in between lets
every threshold up to zero be passed.

For "ours", whose code is round(n Phi(u)) with n = 2^k - 1, the thresholds are Phi^-1((j - 1/2) / n), j = 1..n.
"""

import torch
from torch import Tensor, nn

from common.quantizers.base import QuantAct

INT32 = torch.iinfo(torch.int32)


def integer_thresholds(scale: Tensor, shift: Tensor, steps: Tensor, tie_passes: Tensor) -> tuple[Tensor, Tensor]:
    """The integers from which on scale A + shift, A an integer, has passed the thresholds of a quantizer.

    Args:
        scale, shift: (C,), per channel; computed with in float64.
        steps, tie_passes: (T,), see ``QuantAct.thresholds``.
    Returns:
        thresholds (C, T) int32, ascending, and sign (C,) int32, -1 or +1: the code is the number of thresholds that are
        at most sign * A, for every A of magnitude below 2^31 - 1.
    Raises:
        ValueError: a scale or shift that is not finite.
    """
    scale, shift = scale.double()[:, None], shift.double()[:, None]
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise ValueError("scale and shift of a channel must be finite")
    crossing = (steps - shift) / scale.abs()
    from_here = torch.where(tie_passes, crossing.ceil(), crossing.floor() + 1)
    passed = torch.where(tie_passes, shift >= steps, shift > steps)
    constant = torch.where(passed, float(INT32.min), float(INT32.max))
    thresholds = torch.where(scale == 0, constant, from_here).clamp(INT32.min, INT32.max)
    sign = torch.where(scale < 0, -1, 1).squeeze(1)
    return thresholds.to(torch.int32), sign.to(torch.int32)


def behind_relu(steps: Tensor, tie_passes: Tensor) -> Tensor:
    """The thresholds of a quantizer for values that a ReLU has yet to pass: it passes all up to zero by itself."""
    return torch.where((steps < 0) | (tie_passes & (steps == 0)), -torch.inf, steps)


class Thresholds(nn.Module):
    """(B, C, H, W) int32 sums to the int32 integers that stand for a quantizer's levels, by comparisons alone.

    Attributes:
        thresholds, sign: see ``integer_thresholds``. integers: (T + 1,), of every code. low: the lowest code.

    Args:
        act, integers: the quantizer, and what ``act.integers`` gave. rectified: whether a ReLU comes before it.
    """

    thresholds: Tensor
    sign: Tensor
    integers: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, act: QuantAct, integers: Tensor, rectified: bool = False) -> None:
        super().__init__()
        steps, tie_passes = act.thresholds()
        if rectified:
            steps = behind_relu(steps, tie_passes)
        thresholds, sign = integer_thresholds(scale, shift, steps, tie_passes)
        self.low = act.code_range()[0]
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("sign", sign)
        self.register_buffer("integers", integers.to(torch.int32))

    def forward(self, sums: Tensor) -> Tensor:
        by_channel = (sums.transpose(0, 1) * self.sign.view(-1, 1, 1, 1)).contiguous()
        flat = by_channel.view(len(by_channel), -1)
        codes = torch.searchsorted(self.thresholds, flat, right=True, out_int32=True).view_as(by_channel)
        return self.integers[codes].transpose(0, 1)

    def extra_repr(self) -> str:
        return f"channels={len(self.sign)}, codes={len(self.integers)}"
