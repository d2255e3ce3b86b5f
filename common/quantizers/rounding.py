"""Level grids and the gradients that stand in for a rounding."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

FLOAT_BITS = 32


@dataclass(frozen=True)
class Grid:
    """An evenly spaced set of levels: value = (code - offset) / scale, with integer codes.

    Rounding is half-to-even, as in torch. ``bits`` is the width the grid was made for.
    """

    bits: int
    scale: float
    offset: float

    def codes(self, values: Tensor) -> Tensor:
        """Integer codes (as floats) of real ``values``; values beyond the grid's range are not clipped."""
        return torch.round(values * self.scale + self.offset)

    def values(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """The levels of ``codes``; written to ``out`` where given, which may be ``codes``.

        Levels of opposite codes are opposite to the last bit, so that their sum is zero, and the ReLU behind a residual
        sum has the same gradient however the sum was compiled.
        """
        # in place rather than out=codes, which breaks a compiled graph if they are channels_last
        centred = codes.sub_(self.offset) if out is codes else torch.sub(codes, self.offset, out=out)
        return centred.mul_(1 / self.scale)


def exact_grid(bits: int, r: float) -> Grid:
    """The 2^k levels r (2 c / n - 1), c in {0..n}, n = 2^k - 1, on [-r, r]; k = 1 gives -r and +r.

    >>> exact_grid(2, 1.0).values(torch.arange(4)).tolist()
    [-1.0, -0.3333333432674408, 0.3333333432674408, 1.0]
    """
    n = 2**bits - 1
    return Grid(bits, n / (2 * r), n / 2)


def published_grid(bits: int) -> Grid:
    """The multiples of 1/n: 2 r n + 1 levels on [-r, r], as in the published CRP code (k >= 2)."""
    return Grid(bits, 2**bits - 1, 0.0)


def symmetric_grid(bits: int) -> Grid:
    """The 2^k - 1 levels c / m of [-1, 1], m = 2^(k-1) - 1 (k >= 2): signed integers of k bits, and zero among them.

    >>> symmetric_grid(2).values(torch.arange(-1, 2)).tolist()
    [-1.0, 0.0, 1.0]
    """
    return Grid(bits, 2 ** (bits - 1) - 1, 0.0)


def unit_grid(bits: int, r: float = 1.0) -> Grid:
    """The 2^k levels r c / n on [0, r]."""
    return Grid(bits, (2**bits - 1) / r, 0.0)


def sigmoid_slope(position: Tensor, lam: float, lam2: float) -> Tensor:
    """Slope of the staircase whose steps are sigmoids centred on the thresholds (AlignQ, gradient approximation).

    Args:
        position: real-valued code, before rounding; thresholds lie halfway between integers.
        lam: gain. lam2: sharpness.
    Returns:
        lam 2 lam2 s(t) (1 - s(t)), t = 2 lam2 (frac(position) - 1/2), s the logistic function. Its mean over a step is
        lam (s(lam2) - s(-lam2)); it peaks on the thresholds and is symmetric about them.
    """
    s = (position - torch.floor(position)).sub_(0.5).mul_(2 * lam2).sigmoid_()
    return torch.addcmul(s, s, s, value=-1).mul_(2 * lam * lam2)


def handed_out(result: Tensor) -> Tensor:
    """``result`` as the forward pass of an autograd rule must return it.

    Where the last operation was in place, or a ``to`` that changed nothing, torch 2.11, compiling, gives the result the
    gradient of its operations instead of the rule's, which behind a rounding is 0, and says nothing (pytorch/pytorch
    issue 180642). A view is another tensor to it, and costs nothing.
    """
    return result.view_as(result) if torch.compiler.is_compiling() else result


class _RoundSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def round_ste(x: Tensor) -> Tensor:
    """Round half to even with the straight-through gradient d round(x) / d x = 1 (Bengio et al., 2013)."""
    return _RoundSTE.apply(x)


class _StraightIf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, quantized: Tensor, w: Tensor, condition: Tensor) -> Tensor:
        ctx.save_for_backward(condition)
        return quantized.view_as(quantized)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (condition,) = ctx.saved_tensors
        return grad, torch.where(condition, grad, 0), None


def straight_if(condition: Tensor, quantized: Tensor, w: Tensor) -> Tensor:
    """``quantized``, with the gradient going to w as well where the 0-dimensional ``condition`` holds.

    Weights of a scale of zero, as of a head that starts at zero, would get none otherwise and stay there.
    """
    return _StraightIf.apply(quantized, w, condition)


def widen(x: Tensor) -> Tensor:
    """x in the type to compute in: float64 stays, everything else is float32."""
    return x if x.dtype == torch.float64 else x.float()


class _RoundClipped(torch.autograd.Function):
    """Keeps its input, which the ReLU before it keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.high = high
        scale = unit_grid(bits, high).scale
        return handed_out(widen(x).clamp(0, high).mul_(scale).round_().div_(scale).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return where_kept(grad, x, 0, ctx.high), None, None


def where_kept(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """``grad`` where x lies in [low, high], 0 where clipping to it changed x: straight through a clipped rounding."""
    if torch.compiler.is_compiling():  # in floats: a compiler keeps masks, and in another memory order than x
        return (x.clamp(low, high) - x).abs().sign().neg().add(1).mul(grad)
    return torch.where((x >= low) & (x <= high), grad, 0)


def round_clipped(x: Tensor, bits: int, high: float) -> Tensor:
    """Clip to [0, high] and round on ``unit_grid(bits, high)``; gradient 1 on [0, high], 0 outside."""
    return _RoundClipped.apply(x, bits, high)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest integer code: (-2^(k-1), 2^(k-1) - 1) signed, (0, 2^k - 1) unsigned."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


MOST_INTEGER = 2**15 - 1


def as_integers(levels: Tensor) -> tuple[Tensor, float] | None:
    """Levels as integers times a unit.

    Args:
        levels: (L,) float64, one of them not zero.
    Returns:
        (L,) int64 without a common divisor, and the unit; None where no integers up to ``MOST_INTEGER`` do.

    >>> as_integers(torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64))
    (tensor([-3, -1,  1,  3]), 0.3333333333333333)
    """
    peak = float(levels.abs().max())
    shares = [Fraction(level / peak).limit_denominator(MOST_INTEGER) for level in levels.tolist()]
    common = math.lcm(*(share.denominator for share in shares))
    integers = [int(share * common) for share in shares]
    divisor = math.gcd(*integers)
    if common // divisor > MOST_INTEGER:
        return None
    found, unit = torch.tensor(integers) // divisor, peak * divisor / common
    return (found, unit) if torch.allclose(found.double() * unit, levels, rtol=0, atol=1e-12 * peak) else None


def binarize(w: Tensor, magnitude: Tensor) -> Tensor:
    """magnitude * sign(w), where sign(0) = +1: one bit has no zero level."""
    return torch.where(w < 0, -magnitude, magnitude)


SQRT_HALF = math.sqrt(0.5)
LOG_TWO_PHI_0 = 0.5 * math.log(2 / math.pi)  # log(2 phi(0)), phi the standard normal density
