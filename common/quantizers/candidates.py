"""Trial, taken out again: values x place x scale of docs/centroid.md's grid, twelve methods that differ in nothing else.

- values: ``even`` ones, (2 Phi - 1) of the aligned value as ``ours`` has, with the gradient of the warp; or the bins' ``mean``.
- place: ``before`` the ReLU (signed bins of the BatchNorm's output) or ``after`` it (half-normal bins of a layer's input).
- scale of activations: ``fixed`` 1, ``running`` second moment, or ``learned`` from the least error on.

Weights have the root mean square of each filter and the values of the activations.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.bins import table_of
from common.quantizers.centroid import CentroidAct, CentroidWeight, _unit_weight, root_mean_square
from common.quantizers.learned_scale import CANDIDATES, SAMPLE, LearnedScale
from common.quantizers.rounding import SQRT_HALF, handed_out, widen
from common.quantizers.scheme import BEFORE_RELU, IN_CONV, Method, Scheme


def table(values: str, bits: int, signed: bool) -> Tensor:
    if values == "mean":
        return table_of(bits, signed)
    codes = torch.arange(2**bits) / (2**bits - 1)
    return torch.cat((2 * codes - 1 if signed else codes, torch.full((1,), torch.nan)))


def look_up(v: Tensor, table: Tensor, signed: bool) -> Tensor:
    n, phi = len(table) - 2, torch.erf(v * SQRT_HALF)
    codes = ((phi + 1) * (n / 2) if signed else phi * n).round_().clamp_min_(0)
    return table[codes.nan_to_num_(nan=n + 1).int()]


def slope(v: Tensor, values: str, low: float, high: float) -> Tensor:
    """Of what the values follow: the warp 2 Phi - 1, or v itself up to the outermost values."""
    if values == "even":
        return torch.exp(v.square() / -2) * math.sqrt(2 / math.pi)
    return ((v >= low) & (v <= high)).to(v.dtype)


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, table: Tensor) -> Tensor:
        u, scales = _unit_weight(w)
        q = look_up(u, table, True)
        ctx.save_for_backward(u, q)
        return handed_out(q * scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        u, q = ctx.saved_tensors
        h = slope(u, "even", 0, 0)
        to_scale = (grad * (q - u * h)).mean(tuple(range(1, u.dim())), keepdim=True)
        return grad * h + u * to_scale, None


class EvenWeight(CentroidWeight):
    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.register_buffer("table", table("even", bits, True), persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        return _Weight.apply(w, self.table.to(w.dtype))

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return table("even", self.bits, True)[:-1].to(dtype)

    def scales(self, weight: Tensor) -> Tensor:
        return root_mean_square(weight.detach()).flatten()


class _Act(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, table: Tensor, values: str, signed: bool) -> Tensor:
        v = widen(x) / scale
        q = look_up(v, table, signed)
        ctx.save_for_backward(v, q)
        ctx.settings = values, float(table[0]), float(table[-2])
        codes, features = len(table) - 2, max(x[:1].numel(), 1)
        ctx.gain = (codes / ctx.settings[2]) ** 2 / math.sqrt(features * codes)
        return handed_out((q * scale).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        v, q = ctx.saved_tensors
        h = slope(v, *ctx.settings)
        return grad * h, (grad * (q - v * h)).sum() * ctx.gain, None, None, None


class Act(QuantAct):
    table: Tensor

    def __init__(self, bits: int, values: str = "mean", signed: bool = False) -> None:
        super().__init__(bits)
        self.values, self.signed = values, signed
        self.register_buffer("table", table(values, bits, signed), persistent=False)

    def _quantize(self, x: Tensor, scale: Tensor) -> Tensor:
        return _Act.apply(x, scale, self.table, self.values, self.signed)


class FixedAct(Act):
    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x, torch.ones((), device=x.device))


class RunningAct(Act):
    second_moment: Tensor

    def __init__(self, bits: int, values: str, signed: bool) -> None:
        super().__init__(bits, values, signed)
        self.register_buffer("second_moment", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training or (self.takes_first and not self.seen):
            with torch.no_grad():
                self.seen.add_(1)
                moment = widen(x.detach()).square().mean() * (1 if self.signed else 2)
                self.second_moment.lerp_(moment, (1 / self.seen).clamp_min(0.1))
        return self._quantize(x, self.second_moment.clamp_min(1e-12).sqrt())


class LearnedAct(LearnedScale, Act):
    def __init__(self, bits: int, values: str, signed: bool) -> None:
        super().__init__(bits)
        self.values, self.signed, self.table = values, signed, table(values, bits, signed)

    def initial_scale(self, x: Tensor) -> Tensor:
        """Of least error after the best rescaling, which the next BatchNorm learns."""
        sample = widen(x).flatten()
        peak = sample.abs().amax()
        sample = sample[:: -(-len(sample) // SAMPLE)]
        candidates = peak * torch.arange(1, CANDIDATES + 1, device=x.device) / CANDIDATES / float(self.table[-2])
        agree = []
        for scale in candidates:
            q = self._quantize(sample, scale)
            agree.append((q * sample).sum() / q.square().sum().clamp_min(1e-30).sqrt())
        return candidates[torch.stack(agree).argmax()]

    def forward(self, x: Tensor) -> Tensor:
        return self._quantize(x, self.current_scale(x))


SCALES: dict[str, type[Act]] = {"fixed": FixedAct, "running": RunningAct, "learned": LearnedAct}


def _weight(bits: int, scheme: Scheme, values: str) -> WeightQuantizer:
    return EvenWeight(bits) if values == "even" else CentroidWeight(bits)


def _act(bits: int, scheme: Scheme, values: str, signed: bool, scale: str) -> QuantAct:
    if (values, signed, scale) == ("mean", False, "learned"):
        return CentroidAct(bits)  # the method that won
    return SCALES[scale](bits, values, signed)


CANDIDATE_METHODS = [
    Method(
        name=f"{values}-{place}-{scale}",
        placement=BEFORE_RELU if place == "before" else IN_CONV,
        weight_bits=range(1, 9),
        act_bits=range(1, 9),
        weight=partial(_weight, values=values),
        activation=partial(_act, values=values, signed=place == "before", scale=scale),
    )
    for values in ("even", "mean")
    for place in ("before", "after")
    for scale in SCALES
]
