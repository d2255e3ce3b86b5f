"""Convolution -> BatchNorm -> Gaussian CDF -> rounding as at most 2^k - 1 integer thresholds per channel.

A convolution of codes gives an integer sum A. What follows maps it, channel by channel, to the code
c = round(n Phi(s A + t)), n = 2^k - 1, which is monotone in A. So c is the number of steps j in {1..n} that A has
passed: for s > 0 step j is passed from s A + t >= Phi^-1((j - 1/2) / n) on. A negative s reverses the comparison, a
zero one makes c a constant. On a tie the rounding goes to the even code: an even step counts as passed, an odd one
does not.
"""

import torch
from torch import Tensor, nn

INT32 = torch.iinfo(torch.int32)


def step_positions(bits: int) -> Tensor:
    """(2^k - 1,) float64, ascending: the u at which n Phi(u) passes j - 1/2, j = 1..n."""
    n = 2**bits - 1
    return torch.special.ndtri((torch.arange(1, n + 1, dtype=torch.float64) - 0.5) / n)


def integer_thresholds(scale: Tensor, shift: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The thresholds of c = round(n Phi(scale A + shift)), A an integer.

    Args:
        scale, shift: (C,), per channel; computed with in float64.
    Returns:
        thresholds (C, 2^k - 1) int32, ascending, and sign (C,) int32, -1 or +1: c is the number of thresholds that are
        at most sign * A, for every A of magnitude below 2^31 - 1.
    Raises:
        ValueError: a scale or shift that is not finite.
    """
    scale, shift = scale.double()[:, None], shift.double()[:, None]
    if not (torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        raise ValueError("scale and shift of a channel must be finite")
    steps = step_positions(bits)
    tie_passes = torch.arange(1, len(steps) + 1) % 2 == 0
    crossing = (steps - shift) / scale.abs()
    from_here = torch.where(tie_passes, crossing.ceil(), crossing.floor() + 1)
    passed = torch.where(tie_passes, shift >= steps, shift > steps)
    constant = torch.where(passed, float(INT32.min), float(INT32.max))
    thresholds = torch.where(scale == 0, constant, from_here).clamp(INT32.min, INT32.max)
    sign = torch.where(scale < 0, -1, 1).squeeze(1)
    return thresholds.to(torch.int32), sign.to(torch.int32)


class Thresholds(nn.Module):
    """(B, C, H, W) int32 sums to int32 levels 2 c - n, in -n..n, by comparisons alone.

    Attributes:
        thresholds, sign: see ``integer_thresholds``.
    """

    thresholds: Tensor
    sign: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, bits: int) -> None:
        super().__init__()
        thresholds, sign = integer_thresholds(scale, shift, bits)
        self.bits = bits
        self.register_buffer("thresholds", thresholds)
        self.register_buffer("sign", sign)

    def forward(self, sums: Tensor) -> Tensor:
        by_channel = (sums.transpose(0, 1) * self.sign.view(-1, 1, 1, 1)).contiguous()
        flat = by_channel.view(len(by_channel), -1)
        codes = torch.searchsorted(self.thresholds, flat, right=True, out_int32=True).view_as(by_channel)
        return (2 * codes - self.thresholds.shape[1]).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"channels={len(self.sign)}, bits={self.bits}"
