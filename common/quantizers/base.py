"""The bases of all quantizers.

A quantizer describes itself, so that exporters need to know no method: weights by their levels and scales, activations
by the steps of their forward pass.
"""

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.rounding import FLOAT_BITS, as_integers, exact_grid
from common.quantizers.steps import Invertible, Rounding, Step


class Quantizer(nn.Module):
    """Base of every quantizer module. Its parameters, if any, are learned scales: trained without weight decay.

    Attributes:
        bits: the width of its output. bwn's weights have 1 whatever was asked for.
        scale_lr: learning rate of its parameters relative to the network's.
        follows_loss: whether the gradient of its parameters grows with the loss. One that is made up does not, and a
            loss that is scaled for float16 must not be undone on it.
        takes_first: whether what it learns from data may come from the first tensor of an evaluation, too; true within
            ``scales_from_first_batch``.
    """

    scale_lr: float = 1.0
    follows_loss: bool = True
    takes_first: bool = False

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    @property
    def initialised(self) -> bool:
        """Whether learned scales and statistics have a value; true without such."""
        return True

    @property
    def has_codes(self) -> bool:
        """False for 32 bits, which ``--stage align`` has a quantizer for."""
        return self.bits != FLOAT_BITS

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class WeightQuantizer(Quantizer):
    """Maps a weight tensor to levels of the same shape.

    Its weights are ``levels()[code] * scale``, with the very multiplication that ends its forward pass.
    """

    def initialise(self, weight: Tensor) -> None:
        """Set learned scales from float weights; called once these are in place. Nothing to do without such scales."""

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(L,) ascending, the same for every layer of a network; here the 2^k even ones of [-1, 1].

        Args:
            dtype: float32 gives what the network multiplies, float64 what that is the rounded value of.
        """
        return exact_grid(self.bits, 1.0).values(torch.arange(2**self.bits, dtype=dtype))

    def scales(self, weight: Tensor) -> Tensor:
        """What the levels are multiplied by: (1,) for the layer, or (filters,); here 1."""
        return torch.ones(1)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The places of a layer's quantized weights among the levels, in weight's shape, int64.

        Args:
            weight: (filters, ...) float32, as trained.
        Raises:
            ValueError: the quantized weight holds a value that is not among the levels, such as NaN.
        """
        values, scales, levels = self(weight), self.scales(weight), self.levels()
        rows = values.reshape(len(scales), -1)
        codes = torch.searchsorted(scales.unsqueeze(1) * levels, rows).clamp_(max=len(levels) - 1)
        if not torch.equal(levels[codes] * scales.unsqueeze(1), rows):
            raise ValueError("a quantized weight is not among its levels")
        return codes.view_as(values)

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """A layer's weights as integers times a unit: in weight's shape, int64, and (1,) or (filters,) float64.

        None: its levels are no multiples of a unit.
        """
        found = as_integers(self.levels(torch.float64))
        return None if found is None else (found[0][self.codes(weight)], self.scales(weight).double() * found[1])


class QuantAct(Quantizer):
    """Maps activations to levels of the same shape."""

    def steps(self) -> tuple[Step, ...]:
        """The operations of its forward pass in order, in evaluation: ascending, one of them a ``Rounding`` if it has
        codes, and clipping before that.

        Raises:
            UserError: a method that does not say, or a learned scale without a value.
        """
        raise UserError(f"activations of {type(self).__name__} do not say their steps, and have no form to ship")

    def settings(self) -> tuple[object, ...]:
        """What, beside its class and bits, decides what it computes and is in no state."""
        return ()

    def encoding(self) -> tuple[list[Invertible], Rounding, list[Invertible]]:
        """The steps before the one whose values are codes, that one, and those behind it."""
        before: list[Invertible] = []
        behind: list[Invertible] = []
        rounding: Rounding | None = None
        for step in self.steps():
            if isinstance(step, Rounding):
                rounding = step
            else:
                assert isinstance(step, Invertible)
                (before if rounding is None else behind).append(step)
        assert rounding is not None
        return before, rounding, behind

    def position(self, x: Tensor) -> Tensor:
        """The real-valued code of x, in x's shape and type, ascending with x: rounded, it is the code."""
        before, rounding, _ = self.encoding()
        for step in before:
            x = step(x)
        return rounding.position(x)

    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        low, high = self.position(torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)).round().tolist()
        return int(low), int(high)

    def codes(self, values: Tensor) -> Tensor:
        """The codes, int32, of levels that it gave."""
        for step in reversed(self.encoding()[2]):
            values = step.inverse(values)
        return values.round().to(torch.int32)

    def levels(self, codes: Tensor) -> Tensor:
        """The levels of codes, float64: what the float32 levels of the network are the rounded values of."""
        values = codes.double()
        for step in self.encoding()[2]:
            values = step(values)
        return values

    def thresholds(self) -> tuple[Tensor, Tensor]:
        """(T,) float64, ascending: where the code passes to the next; and whether a value on it has passed."""
        before, rounding, _ = self.encoding()
        values, passed = rounding.crossings(*self.code_range())
        for step in reversed(before):
            values = step.inverse(values)
        return values, passed

    def integers(self) -> tuple[Tensor, float] | None:
        """The levels of all codes, lowest first, as integers times a unit: (T + 1,) int64, and the unit.

        None: they are no multiples of a unit.
        """
        low, high = self.code_range()
        return as_integers(self.levels(torch.arange(low, high + 1)))

    def shifted_integers(self) -> tuple[Tensor, float, float] | None:
        """The same, and an offset that is added to the product: the codes, where levels are even but not about zero."""
        if (found := self.integers()) is not None:
            return *found, 0.0
        low, high = self.code_range()
        codes = torch.arange(low, high + 1)
        levels = self.levels(codes)
        unit = float(levels[-1] - levels[0]) / (high - low)
        offset = float(levels[0]) - unit * low
        even = torch.allclose(codes.double() * unit + offset, levels, rtol=0, atol=1e-12 * float(levels.abs().max()))
        return (codes, unit, offset) if even else None
