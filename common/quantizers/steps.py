"""The elementary steps of an activation quantizer's forward pass: what its codes and exported forms follow from.

Every step ascends, and one of them rounds: ``Round``, or ``Search`` where levels are uneven. What comes before it gives
the real-valued code, what comes after it turns codes into levels. A method whose steps are not here adds its own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from common.quantizers.rounding import unit_grid

Operand = float | Tensor  # a number, or a 0-dimensional learned scale


class Step(ABC):
    """A function of a tensor; its fields are ONNX's further inputs of the operator ``onnx``."""

    onnx: ClassVar[str]

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The step, in x's shape and type."""

    def operands(self) -> list[Operand]:
        return [getattr(self, one.name) for one in fields(self)]  # type: ignore[arg-type]


class Invertible(Step):
    """A step that does not round."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x that gives y, for y strictly within what the step gives."""


@dataclass(frozen=True, eq=False)
class Add(Invertible):
    what: Operand
    onnx = "Add"

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.what

    def inverse(self, y: Tensor) -> Tensor:
        return y - self.what


@dataclass(frozen=True, eq=False)
class Multiply(Invertible):
    by: Operand
    onnx = "Mul"

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.by

    def inverse(self, y: Tensor) -> Tensor:
        return y / self.by


@dataclass(frozen=True, eq=False)
class Divide(Invertible):
    by: Operand
    onnx = "Div"

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.by

    def inverse(self, y: Tensor) -> Tensor:
        return y * self.by


@dataclass(frozen=True, eq=False)
class Clip(Invertible):
    low: float
    high: float
    onnx = "Clip"

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def inverse(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True, eq=False)
class Erf(Invertible):
    onnx = "Erf"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.erfinv(y)


class Rounding(Step):
    """The step whose values are codes."""

    @abstractmethod
    def position(self, x: Tensor) -> Tensor:
        """The real-valued code: rounded, it is the code."""

    @abstractmethod
    def crossings(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """The x at which the code becomes low + 1, ..., high, float64, and whether it has become it on them."""


@dataclass(frozen=True, eq=False)
class Round(Rounding):
    """To the nearest integer, half to even."""

    onnx = "Round"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.round(x)

    def position(self, x: Tensor) -> Tensor:
        return x

    def crossings(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        codes = torch.arange(low + 1, high + 1)
        return codes.double() - 0.5, codes % 2 == 0


@dataclass(frozen=True, eq=False)
class Search(Rounding):
    """The number of thresholds, (T,) ascending, below x.

    Its real-valued code is linear between them and reaches 0 and T at ``ends``.
    """

    thresholds: Tensor
    ends: tuple[float, float]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bucketize(x, self.thresholds.to(x.dtype)).to(x.dtype)

    def position(self, x: Tensor) -> Tensor:
        inner, (first, last) = self.thresholds.to(x.dtype), self.ends
        knots = torch.cat((2 * first - inner[:1], inner, 2 * last - inner[-1:]))
        x = x.clamp(first, last)
        below = torch.searchsorted(knots, x).sub_(1).clamp_(0, len(inner))
        return below + (x - knots[below]) / (knots[below + 1] - knots[below]) - 0.5

    def crossings(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        return self.thresholds.double(), torch.zeros(len(self.thresholds), dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Lookup(Invertible):
    """The entry of a table, (L,) ascending, that a code from 0 on points at."""

    table: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.table[x.long()].to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        return torch.bucketize(y, ((self.table[1:] + self.table[:-1]) / 2).to(y.dtype)).to(y.dtype)


def clipped_steps(bits: int, high: float) -> tuple[Step, ...]:
    """Of ``round_clipped``: the 2^k levels high c / n on [0, high]."""
    unit = unit_grid(bits, high).scale
    return Clip(0.0, high), Multiply(unit), Round(), Divide(unit)
