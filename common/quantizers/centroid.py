"""Centroid quantization: the thresholds of the alignment, and for every bin the bin's own mean.

The alignment of ``ours`` cuts a normal variable into bins of equal probability and puts even values in their place, so
that the network computes with 2 Phi(x) - 1 instead of x. Here a bin gets the mean of the variable within it, the value
of least squared error for given bins (Lloyd, 1982; Max, 1960): what is left is x, up to the rounding. With n = 2^k - 1,

- weights: u = w / s, s the root mean square of the filter; code round(n Phi(u)); value s E[z | bin], z standard normal;
- activations behind a ReLU: v = x / s, s learned; code round(n (2 Phi(v) - 1)); value s E[|z| | bin], and 0 for code 0.

Values are integers times the outermost value / 127 (both signs) or / 255, so that a convolution of 8-bit integers is
exact. At 7 and 8 bits the bins about zero are narrower than this unit: neighbours whose means round to one integer are
one level.
"""

import math
from typing import Any

import torch
from torch import Tensor

from common.quantizers.alignq import aligned_position
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.bins import Bins, bins_of, levels, table_of
from common.quantizers.learned_scale import LearnedScale, least_error_scale
from common.quantizers.rounding import handed_out, where_kept, widen
from common.quantizers.scheme import IN_CONV, Method, Scheme
from common.quantizers.steps import Divide, Lookup, Multiply, Search, Step


def _look_up(u: Tensor, table: Tensor, bins: Bins) -> Tensor:
    """The values of u by ``table``; what is below the lowest bin counts to it, and NaN has the last entry."""
    codes = aligned_position(u, 1.0, bins.grid).round_().clamp_min_(0)
    # vectors compute faster than they gather; an exported program keeps the table, and with it the file's last bit
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting() and bins.integers is not None:
        return bins.integers(codes) * (table[-2] / bins.most)
    entries = codes.nan_to_num_(nan=len(table) - 1).int()
    if not codes.is_contiguous():  # channels last, which indexing keeps; selecting is faster and would not
        return table[entries]
    return table.index_select(0, entries.flatten()).view_as(codes)


def root_mean_square(w: Tensor) -> Tensor:
    """Of each filter of w, (filters, ...): (filters, 1, ...). Nothing over- or underflows on the way."""
    within = tuple(range(1, w.dim()))
    peak = w.abs().amax(within, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return (w / peak).square_().mean(within, keepdim=True).sqrt_().mul_(peak)


def _unit_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    scales = root_mean_square(w)
    return w / scales.clamp_min(torch.finfo(w.dtype).tiny), scales


class _CentroidWeight(torch.autograd.Function):
    """Keeps the weight itself, which lives anyway."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, table: Tensor, bins: Bins) -> Tensor:
        ctx.save_for_backward(w, table)
        ctx.bins = bins
        u, scales = _unit_weight(w)
        return handed_out(_look_up(u, table, bins).mul_(scales))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        w, table = ctx.saved_tensors
        u, _ = _unit_weight(w)
        error = _look_up(u, table, ctx.bins).sub_(u)
        to_scale = error.mul_(grad).mean(tuple(range(1, w.dim())), keepdim=True)
        return u.mul_(to_scale).add_(grad), None, None


def centroid_weight(w: Tensor, table: Tensor, bins: Bins) -> Tensor:
    """s table[round(n Phi(w / s))], s the root mean square of each filter.

    Args:
        w: (filters, ...), float32 or float64.
        table: (2^k + 1,), the values of z's bins and NaN, in w's type. bins: of the codes.
    Returns:
        Levels in w's shape. Gradient, N weights to a filter, q the value of u = w / s: straight through the rounding,
        and through s, so g_j + u_j / N sum_i g_i (q_i - u_i). A filter of zeros stays zero and has gradient g.
    """
    return _CentroidWeight.apply(w, table, bins)


class CentroidWeight(WeightQuantizer):
    """One scale per filter."""

    table: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.register_buffer("table", table_of(bits, signed=True), persistent=False)
        self.bins = bins_of(bits, signed=True)

    def forward(self, w: Tensor) -> Tensor:
        return centroid_weight(w, self.table.to(w.dtype), self.bins)

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return levels(self.bits, signed=True)[0].to(dtype)

    def scales(self, weight: Tensor) -> Tensor:
        return root_mean_square(weight.detach()).flatten()


class _CentroidActivation(torch.autograd.Function):
    """Keeps its input, and its output, which the layer that reads it keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, table: Tensor, bins: Bins, ends: tuple[float, float]) -> Tensor:
        out = handed_out(_look_up(widen(x) / scale, table * scale, bins).to(x.dtype))
        ctx.save_for_backward(x, out, scale)
        codes, features = bins.grid.scale, max(x[:1].numel(), 1)
        ctx.ends, ctx.gain = ends, (codes / ends[1]) ** 2 / math.sqrt(features * codes)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, out, scale = ctx.saved_tensors
        v, (low, high) = widen(x) / scale, ctx.ends
        slope = torch.where((v >= low) & (v <= high), widen(out) - widen(x), widen(out))
        to_scale = slope.mul_(grad).sum().mul_(ctx.gain).div_(scale)
        return where_kept(grad, v, low, high), to_scale, None, None, None


def centroid_activation(x: Tensor, scale: Tensor, table: Tensor, bins: Bins, ends: tuple[float, float]) -> Tensor:
    """scale table[code of x / scale].

    Args:
        x: any shape; float16 and bfloat16 are quantized in float32.
        scale: 0-dimensional, positive. table: (2^k + 1,), the values of the codes and NaN.
        bins: of the codes. ends: the least value and the largest, of table.
    Returns:
        Levels in x's shape and type. Gradients, v = x / scale and q its value: to x, 1 where v lies between the ends
        and 0 outside; to the scale, q - v between them and q outside, summed, and times what makes it learn as LSQ's
        step would (section 2.2): (c / end)^2 / sqrt(N c), c codes within the end, N features of a sample.
    """
    return _CentroidActivation.apply(x, scale, table, bins, ends)


class CentroidAct(LearnedScale, QuantAct):
    """For a layer's input: behind a ReLU 2^k codes from 0 on, else ``signed``, with the codes of weights.

    The scale begins where the first data have the least squared error: they are no normal variable cut at zero, and a
    scale from their moments clips too much.
    """

    table: Tensor

    def __init__(self, bits: int, signed: bool = False) -> None:
        super().__init__(bits)
        self.signed = signed
        self.register_buffer("table", table_of(bits, signed), persistent=False)
        self.bins, self.ends = bins_of(bits, signed), (float(self.table[0]), float(self.table[-2]))

    def initial_scale(self, x: Tensor) -> Tensor:
        end = self.ends[1]
        return least_error_scale(x, lambda sample, clipped: self._quantize(sample, clipped / end)) / end

    def _quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        return centroid_activation(x, scale, self.table.to(widen(x).dtype), self.bins, self.ends)

    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x, self.current_scale(x))

    def steps(self) -> tuple[Step, ...]:
        scale, (values, between) = self.settled(), levels(self.bits, self.signed)
        return Divide(scale), Search(between, self.ends), Lookup(values), Multiply(scale)

    def settings(self) -> tuple[object, ...]:
        return ("signed",) if self.signed else ()


def _weight(bits: int, scheme: Scheme) -> WeightQuantizer:
    return CentroidWeight(bits)


def _activation(bits: int, scheme: Scheme) -> QuantAct:
    return CentroidAct(bits)


def _unnormalised(bits: int, scheme: Scheme, positive: bool) -> QuantAct:
    return CentroidAct(bits, signed=not positive)


METHOD = Method(
    name="centroid",
    placement=IN_CONV,
    weight_bits=range(1, 9),
    act_bits=range(1, 9),
    weight=_weight,
    activation=_activation,
    unnormalised=_unnormalised,
)
