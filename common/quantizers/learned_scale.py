"""Quantizers with a learned scale: how it begins, that it stays positive, and the evenly spaced kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from common.errors import UserError
from common.quantizers.base import QuantAct, Quantizer, WeightQuantizer
from common.quantizers.rounding import code_range, widen
from common.quantizers.steps import Clip, Divide, Multiply, Round, Step

BAND = 100.0  # a learned scale further than this factor from its reference has run away
CANDIDATES, SAMPLE = 32, 1 << 14  # of the scale of least error: values tried, elements they are tried on
NO_VALUE = (
    "a learned scale has no value yet, and evaluation gives it none: train the network or calibrate it first, or "
    "evaluate a file that was trained with this method at these bits"
)


def _kept(scale: Tensor, reference: Tensor) -> Tensor:
    within = (scale > reference / BAND) & (scale < reference * BAND)  # false for NaN
    return torch.where(within, scale, reference)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, reference: Tensor) -> Tensor:
        return _kept(scale, reference)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class LearnedScale(Quantizer, ABC):
    """A quantizer with one learned scale, kept positive and near where it began.

    State: the parameter ``scale``; the buffer ``reference``, its initial value (0: not initialised), and the buffer
    ``width``, the bits it was made for. All three exist from construction and are saved. A state dict without them, or
    one made at another width, leaves the quantizer uninitialised: the scale is then taken from ``initialise``, else
    from the first tensor it sees in training (the mean over processes, where several train together). In evaluation an
    uninitialised quantizer refuses data that would give it a value, outside of ``scales_from_first_batch``.

    A scale that is not finite, not positive, or a factor 100 away from the reference counts as the reference, in
    every forward pass; while training it is also set to it, by the pass itself or, where that is compiled, by
    ``keep_scales``. Nothing here waits for the device after initialisation.
    """

    reference: Tensor
    width: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("reference", torch.zeros(()))
        self.register_buffer("width", torch.tensor(bits))
        self._initialised = False  # mirrors ``reference > 0``, so that no forward pass reads the device

    @property
    def initialised(self) -> bool:
        return self._initialised

    @abstractmethod
    def initial_scale(self, x: Tensor) -> Tensor:
        """The 0-dimensional initial value for data x, a detached float tensor."""

    @torch.no_grad()
    def initialise(self, weight: Tensor) -> None:
        """Set scale and reference from data. All-zero or non-finite data set 1 and leave it uninitialised."""
        self.set_initial(self._initial(weight))

    def _initial(self, x: Tensor) -> Tensor:
        return self.initial_scale(x.detach()).to(self.reference)

    @torch.no_grad()
    def set_initial(self, value: Tensor) -> None:
        """Set scale and reference to a 0-dimensional value; one that is not positive leaves it uninitialised."""
        self._initialised = bool(torch.isfinite(value) & (value > 0))
        self.reference.copy_(value if self._initialised else torch.zeros_like(value))
        self.scale.copy_(value if self._initialised else torch.ones_like(value))

    @torch.no_grad()
    def _initialise_in_forward(self, x: Tensor) -> None:
        if bool(self.reference > 0):  # another module's state was copied in, tensor by tensor
            self._initialised = True
            return
        value = self._initial(x)
        if not (self.training or self.takes_first) and bool(torch.isfinite(value) & (value > 0)):
            raise UserError(NO_VALUE)
        if self.training and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(value)
            value /= distributed.get_world_size()
        self.set_initial(value)

    def current_scale(self, x: Tensor) -> Tensor:
        """The scale to quantize x with: positive, finite, differentiable with respect to the parameter.

        Raises:
            UserError: in evaluation, without a value.
        """
        if not self._initialised:
            self._initialise_in_forward(x)
        reference = self.reference if self._initialised else torch.ones_like(self.reference)
        if self.training and not torch.compiler.is_compiling():
            with torch.no_grad():
                self.scale.copy_(_kept(self.scale, reference))
        return _Kept.apply(self.scale, reference)

    def settled(self) -> Tensor:
        """The scale as evaluation takes it, 0-dimensional and detached.

        Raises:
            UserError: it has no value.
        """
        if not self.initialised:
            raise UserError(NO_VALUE)
        return self.current_scale(self.scale).detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if int(self.width) != self.bits:
            self.width = torch.full_like(self.width, self.bits)
            self.reference = torch.zeros_like(self.reference)
        self._initialised = bool(self.reference > 0)


@torch.no_grad()
def keep_scales(quantizers: Sequence[LearnedScale]) -> None:
    """Set each initialised scale that has run away to its reference, before a compiled pass of a training step.

    The pass itself must not: its backward pass may read the parameter again, which the step's second pass would have
    written meanwhile.
    """
    if quantizers:
        scales: list[Tensor] = [quantizer.scale for quantizer in quantizers]
        kept = _kept(torch.stack(scales), torch.stack([quantizer.reference for quantizer in quantizers]))
        torch._foreach_copy_(scales, kept.unbind())


@contextmanager
def scales_from_first_batch(model: nn.Module) -> Iterator[None]:
    """Within it, learned scales and statistics without a value take it from the first tensor of an evaluation, too."""
    fresh = [m for m in model.modules() if isinstance(m, Quantizer) and not m.initialised]
    try:
        for module in fresh:
            module.takes_first = True
        yield
    finally:
        for module in fresh:
            module.takes_first = False


def least_error_scale(x: Tensor, quantize: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of ``CANDIDATES`` even steps up to max |x|, the one with the least squared error on a sample of x.

    Args:
        quantize: x at a scale, 0-dimensional.
    """
    sample = widen(x).flatten()
    peak = sample.abs().amax()
    sample = sample[:: -(-len(sample) // SAMPLE)]
    candidates = peak * torch.arange(1, CANDIDATES + 1, dtype=sample.dtype, device=sample.device) / CANDIDATES
    errors = [(quantize(sample, scale) - sample).square().mean() for scale in candidates]
    return candidates[torch.stack(errors).argmin()]


class SteppedWeight(LearnedScale, WeightQuantizer):
    """Signed codes -2^(k-1) .. 2^(k-1) - 1 times the scale."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.low, self.high = code_range(bits, signed=True)

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.arange(self.low, self.high + 1, dtype=dtype)

    def scales(self, weight: Tensor) -> Tensor:
        return self.current_scale(weight).detach().reshape(1)


class SteppedAct(LearnedScale, QuantAct):
    """Codes 0 .. 2^k - 1 times the scale, or -2^(k-1) .. 2^(k-1) - 1 if signed."""

    def __init__(self, bits: int, signed: bool = False) -> None:
        super().__init__(bits)
        self.low, self.high = code_range(bits, signed)

    def settings(self) -> tuple[object, ...]:
        return ("signed",) if self.low < 0 else ()

    def steps(self) -> tuple[Step, ...]:
        scale = self.settled()
        return Divide(scale), Clip(self.low, self.high), Round(), Multiply(scale)
