"""APoT, additive powers-of-two quantization (Li et al., ICLR 2020, arXiv 1909.13144).

Levels are sums of powers of two, alpha the learned clipping value. Weights are normalised before they are clipped.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.learned_scale import LearnedScale, least_error_scale
from common.quantizers.rounding import handed_out, straight_if, widen
from common.quantizers.scheme import IN_CONV, Method, Scheme
from common.quantizers.steps import Divide, Lookup, Multiply, Search, Step
from common.quantizers.weight_statistics import deviation, is_constant, standardize, standardize_backward

# -log2 of the non-zero addends, one tuple for each summand, by the bits of the unsigned grid. Even widths have the
# paper's n = bits / 2 summands {0, 2^-i, 2^-(i+n), 2^-(i+2n)}, i < n; odd widths have one summand of a single bit.
ADDENDS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((0,),),
    2: ((0, 1, 2),),
    3: ((1, 2, 4), (3,)),
    4: ((0, 2, 4), (1, 3, 5)),
    5: ((1, 3, 6), (2, 4, 7), (5,)),
    6: ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
}


def apot_levels(bits: int) -> Tensor:
    """The 2^bits additive powers of two on [0, 1], in ascending order, the largest 1; float64.

    >>> apot_levels(3).tolist()
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0]
    """
    summands = [(0.0, *(2.0**-e for e in exponents)) for exponents in ADDENDS[bits]]
    sums = sorted(sum(terms) for terms in product(*summands))
    return torch.tensor(sums, dtype=torch.float64) / sums[-1]


def nearest_codes(v: Tensor, thresholds: Tensor, signed: bool) -> Tensor:
    """Codes (uint8) of the levels nearest to v, or to |v| if ``signed``; what lies beyond an end gets the end.

    Args:
        thresholds: the midpoints between the levels; a v on one takes the smaller magnitude.
    """
    return torch.bucketize(v.abs() if signed else v, thresholds.to(v.dtype), out_int32=True).to(torch.uint8)


def _projected(v: Tensor, codes: Tensor, levels: Tensor, signed: bool) -> Tensor:
    """The levels of ``codes`` with the signs of v; a NaN stays one."""
    nearest = levels.to(v.dtype).index_select(0, codes.flatten().int()).view_as(v)
    if signed:
        nearest.copysign_(v)
    return torch.where(v.isnan(), v, nearest)


class _APoT(torch.autograd.Function):
    """Keeps its input, and the codes in a byte each, for searching them is what takes the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, levels: Tensor, thresholds: Tensor, signed: bool) -> Tensor:
        v = widen(x) / alpha
        codes = nearest_codes(v, thresholds, signed)
        ctx.save_for_backward(x, alpha, codes, levels)
        ctx.signed = signed
        return handed_out(_projected(v, codes, levels, signed).mul_(alpha).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, alpha, codes, levels = ctx.saved_tensors
        v = widen(x) / alpha
        inside = (v >= (-1 if ctx.signed else 0)) & (v <= 1)
        projected = _projected(v, codes, levels, ctx.signed)
        grad_alpha = torch.where(inside, projected - v, projected).mul_(grad).sum().to(alpha.dtype)
        return torch.where(inside, grad, 0), grad_alpha, None, None, None


def apot(x: Tensor, alpha: Tensor, levels: Tensor, thresholds: Tensor, signed: bool) -> Tensor:
    """alpha * Pi(clip(x / alpha)), with the gradients of the paper's reparameterised clipping function.

    Args:
        alpha: 0-dimensional, positive; the clipping value.
        levels: ascending, from 0 to 1. thresholds: the midpoints between them.
        signed: clip to [-1, 1] and use the levels with both signs, instead of to [0, 1].
    Returns:
        Levels in x's shape and type. Gradients: to x, 1 where nothing is clipped and 0 elsewhere; to alpha,
        Pi(x / alpha) - x / alpha there and the clipped end (sign(x), or 0 below 0 if unsigned) elsewhere, summed.
    """
    return _APoT.apply(x, alpha, levels, thresholds, signed)


class _Normalise(torch.autograd.Function):
    """The paper's (w - mean) / (std + eps), its eps relative to max |w|. Keeps w; mean and std are differentiated."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return handed_out(standardize(w)[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return standardize_backward(grad, *standardize(ctx.saved_tensors[0]))


TINY = torch.finfo(torch.float32).tiny


class _APoTQuantizer(LearnedScale):
    """``scale`` is alpha.

    The authors start it at 3 (weights) and 8 (activations) and go down from float over 4 and 3 to 2 bits. Started from
    float at 2 bits, these values round nearly everything to zero and the network stays at chance; here alpha starts
    where it quantizes the first data with the least squared error.
    """

    signed: bool
    magnitudes: Tensor
    midpoints: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        levels = apot_levels(self.grid_bits)
        self.register_buffer("magnitudes", levels.float(), persistent=False)
        self.register_buffer("midpoints", ((levels[1:] + levels[:-1]) / 2).float(), persistent=False)

    @property
    def grid_bits(self) -> int:
        return self.bits - 1 if self.signed else self.bits

    def initial_scale(self, x: Tensor) -> Tensor:
        return least_error_scale(x, self._quantize)

    def _quantize(self, x: Tensor, alpha: Tensor) -> Tensor:
        return apot(x, alpha, self.magnitudes, self.midpoints, self.signed)

    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x, self.current_scale(x))


class APoTWeight(_APoTQuantizer, WeightQuantizer):
    """Sign and a grid of k - 1 bits: 2^k - 1 levels. The weights are normalised first."""

    signed = True
    scale_lr = 0.2  # the authors' 2e-2 for alpha where the network has 0.1

    def initial_scale(self, x: Tensor) -> Tensor:
        return super().initial_scale(standardize(widen(x))[0])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Normalise.apply(x))

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        magnitudes = apot_levels(self.grid_bits).to(dtype)
        return torch.cat((-magnitudes[1:].flip(0), magnitudes))

    def scales(self, weight: Tensor) -> Tensor:
        return self.current_scale(weight).detach().reshape(1)


class ScaledAPoTWeight(APoTWeight):
    """For a layer behind which no BatchNorm restores the scale: times std(w), differentiated, mean(w) left out."""

    def forward(self, w: Tensor) -> Tensor:
        scale = self.current_scale(w) * deviation(w).clamp_min(TINY)
        return straight_if(is_constant(w), self._quantize(w - w.mean(), scale), w)

    def scales(self, weight: Tensor) -> Tensor:
        return super().scales(weight) * deviation(weight.detach()).clamp_min(TINY)


class APoTAct(_APoTQuantizer, QuantAct):
    """A grid of k bits, for a convolution's input behind a ReLU; alpha learns at the network's own rate."""

    signed = False

    def steps(self) -> tuple[Step, ...]:
        scale = self.settled()
        codes = Search(self.midpoints, ends=(0.0, 1.0))
        return Divide(scale), codes, Lookup(apot_levels(self.bits)), Multiply(scale)


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return APoTWeight(bits)


def _scaled_weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return ScaledAPoTWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return APoTAct(bits)


METHOD = Method(
    name="apot",
    placement=IN_CONV,
    weight_bits=range(2, 6),
    act_bits=range(2, 7),
    weight=_weight,
    activation=_activation,
    scaled_weight=_scaled_weight,
)
