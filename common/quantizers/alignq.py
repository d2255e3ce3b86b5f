"""DAQ, the alignment quantizer of AlignQ (CVPR 2022): align by the Gaussian CDF, then round on an even grid.

A value u, standard normal by construction, is mapped to r (2 Phi(u) - 1) = r erf(u / sqrt 2), uniform on [-r, r],
and rounded there. Weights are standardised over their tensor first (r = 1); activations follow a BatchNorm, so u = x.
"""

import math
from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.rounding import (
    FLOAT_BITS,
    LOG_TWO_PHI_0,
    SQRT_HALF,
    Grid,
    exact_grid,
    handed_out,
    published_grid,
    sigmoid_slope,
    straight_if,
    symmetric_grid,
    widen,
)
from common.quantizers.scheme import BEFORE_RELU, Method, Scheme
from common.quantizers.standardised import StandardisedAct
from common.quantizers.steps import Add, Erf, Multiply, Round, Step
from common.quantizers.weight_statistics import deviation, is_constant, standardize, standardize_backward


def align(u: Tensor, r: float = 1.0) -> Tensor:
    """r (2 Phi(u) - 1), the aligned value in [-r, r]."""
    return (u * SQRT_HALF).erf_().mul_(r)


def density(u: Tensor, r: float = 1.0) -> Tensor:
    """d align(u, r) / d u = 2 r phi(u)."""
    log_peak = torch.full((), LOG_TWO_PHI_0 + math.log(r), dtype=u.dtype, device=u.device)
    return torch.addcmul(log_peak, u, u, value=-0.5).exp_()


def aligned_position(u: Tensor, r: float, grid: Grid) -> Tensor:
    """The real-valued code of align(u, r) on ``grid``, in as few passes over memory as torch offers."""
    offset = torch.full((), grid.offset, dtype=u.dtype, device=u.device)
    erf = (u * SQRT_HALF).erf_()
    out = None if torch.compiler.is_compiling() else erf  # out= breaks a compiled graph if it is channels_last
    return torch.add(offset, erf, alpha=r * grid.scale, out=out)


def _align_and_round(u: Tensor, r: float, grid: Grid | None) -> Tensor:
    if grid is None:
        return align(u, r)
    codes = aligned_position(u, r, grid).round_()
    return grid.values(codes, out=codes)


class _AlignActivation(torch.autograd.Function):
    """Keeps its input and nothing else; straight-through over the rounding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: float, grid: Grid | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.r = r
        return handed_out(_align_and_round(widen(x), r, grid).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return density(widen(x), ctx.r).mul_(grad).to(x.dtype), None, None


class _AlignWeight(torch.autograd.Function):
    """Keeps the weight itself, which lives anyway; the statistics are computed anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid | None, slope: tuple[float, float] | None) -> Tensor:
        ctx.save_for_backward(w)
        ctx.grid, ctx.slope = grid, slope
        return handed_out(_align_and_round(standardize(w)[0], 1.0, grid))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        u, inverse_std = standardize(w)
        h = density(u).mul_(grad)
        if ctx.grid is not None and ctx.slope is not None:
            h.mul_(sigmoid_slope(aligned_position(u, 1.0, ctx.grid), *ctx.slope))
        return standardize_backward(h, u, inverse_std), None, None


def align_activation(x: Tensor, r: float, grid: Grid | None) -> Tensor:
    """DAQ of activations: round(align(x, r)) on ``grid``, or align(x, r) itself for ``grid=None``.

    Args:
        x: BatchNorm output, any shape; float16 and bfloat16 are aligned in float32.
        r: half-width of the range, act_range.
    Returns:
        Levels in [-r, r], in x's shape and type; gradient 2 r phi(x), straight-through over the rounding.
    """
    return _AlignActivation.apply(x, r, grid)


def align_weight(w: Tensor, grid: Grid | None, slope: tuple[float, float] | None = None) -> Tensor:
    """DAQ of a weight tensor: standardise, align to [-1, 1], round on ``grid`` (``None``: no rounding).

    Args:
        w: weights, any shape, float32 or float64.
        slope: (lam, lam2) of the sigmoid gradient approximation; ``None`` is straight-through.
    Returns:
        Levels in [-1, 1]; the gradient includes mean and std.
    """
    return _AlignWeight.apply(w, grid, slope)


def _grid(bits: int, r: float, levels: str) -> Grid | None:
    if bits == FLOAT_BITS:
        return None
    return published_grid(bits) if levels == "published" else exact_grid(bits, r)


def _steps(r: float, grid: Grid | None) -> tuple[Step, ...]:
    """Of ``align_activation``."""
    if grid is None:
        return Multiply(SQRT_HALF), Erf(), Multiply(r)
    position = (Multiply(SQRT_HALF), Erf(), Multiply(r * grid.scale), Add(grid.offset))
    return *position, Round(), Add(-grid.offset), Multiply(1 / grid.scale)


class AlignWeight(WeightQuantizer):
    def __init__(self, bits: int, scheme: Scheme) -> None:
        super().__init__(bits)
        symmetric = scheme.levels == "symmetric" and bits != FLOAT_BITS
        self.grid = symmetric_grid(bits) if symmetric else _grid(bits, 1.0, scheme.levels)
        self.slope = (scheme.lam, scheme.lam2) if scheme.grad_approx == "sigmoid" else None

    def forward(self, w: Tensor) -> Tensor:
        return align_weight(w, self.grid, self.slope)

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """2^k levels, 2^(k+1) - 1 for ``--levels published``, 2^k - 1 for ``--levels symmetric``."""
        assert self.grid is not None
        n = int(self.grid.scale) if self.grid.offset == 0 else 2**self.bits - 1
        return self.grid.values(torch.arange(-n if self.grid.offset == 0 else 0, n + 1, dtype=dtype))


def matched_range(bits: int) -> float:
    """The r at which levels r (2 c / n - 1) of codes round(n Phi(u)) have the least squared error from a normal u.

    >>> round(matched_range(32), 4), round(matched_range(2), 4)
    (1.6926, 1.3645)
    """
    if bits == FLOAT_BITS:
        return 3 / math.sqrt(math.pi)
    n = 2**bits - 1
    with torch.device("cpu"):  # also where a network is built on "meta", without values
        passed = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # Phi at the thresholds
        levels = exact_grid(bits, 1.0).values(torch.arange(n + 1, dtype=torch.float64))
        shares = torch.cat((passed, torch.ones(1))) - torch.cat((torch.zeros(1), passed))
        densities = density(torch.special.ndtri(passed)) / 2
        return float(2 / n * densities.sum() / (levels.square() * shares).sum())


class ScaledAlignWeight(AlignWeight):
    """For a layer behind which no BatchNorm restores the scale: the levels times std(w), differentiated, and
    ``matched_range``. It begins as near to the float weights as the levels allow."""

    def __init__(self, bits: int, scheme: Scheme) -> None:
        super().__init__(bits, scheme)
        self.range = matched_range(bits)

    def _scale(self, w: Tensor) -> Tensor:
        return deviation(w) * self.range

    def forward(self, w: Tensor) -> Tensor:
        return straight_if(is_constant(w), super().forward(w) * self._scale(w), w)

    def scales(self, weight: Tensor) -> Tensor:
        return self._scale(weight.detach()).reshape(1)


class AlignAct(QuantAct):
    def __init__(self, bits: int, scheme: Scheme) -> None:
        super().__init__(bits)
        self.act_range = scheme.act_range
        self.grid = _grid(bits, scheme.act_range, scheme.levels)

    def forward(self, x: Tensor) -> Tensor:
        return align_activation(x, self.act_range, self.grid)

    def steps(self) -> tuple[Step, ...]:
        return _steps(self.act_range, self.grid)

    def settings(self) -> tuple[object, ...]:
        return self.act_range, self.grid


class StandardAlignAct(StandardisedAct):
    """For activations that no BatchNorm normalises. Its range is ``matched_range``, not act_range: what comes next has
    no normalisation that would take another scale back."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.range = matched_range(bits)
        self.grid = _grid(bits, self.range, "exact")

    def quantize(self, u: Tensor) -> Tensor:
        return align_activation(u, self.range, self.grid)

    def standard_steps(self) -> tuple[Step, ...]:
        return _steps(self.range, self.grid)


def _unnormalised(bits: int, scheme: Scheme, positive: bool) -> QuantAct:
    return StandardAlignAct(bits)


METHOD = Method(
    name="ours",
    placement=BEFORE_RELU,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    weight=AlignWeight,
    activation=AlignAct,
    scaled_weight=ScaledAlignWeight,
    unnormalised=_unnormalised,
    aligns=True,
)
