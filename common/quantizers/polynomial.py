"""Integers that lie on a smooth curve, as a polynomial of their codes: cheaper than a table where vectors compute."""

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_POWER = 10


@dataclass(frozen=True)
class Polynomial:
    """round(c_0 + c_1 t + ... + beyond [last code]), t the code's place from -1 to 1; exact in float32.

    Attributes:
        codes: how many there are, counted from 0.
        beyond: what is added for the last code, whose bin has no end and whose integer lies off the curve.
        coefficients: float32, the highest power's first.
    """

    codes: int
    beyond: float
    coefficients: tuple[float, ...]

    @property
    def half(self) -> float:
        """The middle of the codes, which is at place 0."""
        return (self.codes - 1) / 2

    def __call__(self, codes: Tensor) -> Tensor:
        """The integers, as floats, of codes of any float type; NaN for NaN."""
        return torch.round(self.curve(codes))

    def curve(self, codes: Tensor) -> Tensor:
        """Before the rounding."""
        place = (codes - self.half) * (1 / self.half)
        value = place * self.coefficients[0]
        for one in self.coefficients[1:-1]:
            value = (value + one) * place
        return value + self.coefficients[-1] + torch.relu(codes - (self.codes - 2)) * self.beyond


def polynomial_through(integers: Tensor) -> Polynomial | None:
    """The shortest of (codes,) ascending integers; None: there is none up to the tenth power."""
    count = len(integers)
    codes = torch.arange(count, dtype=torch.float64, device="cpu")  # wherever modules are being made
    places, last = (2 * codes / (count - 1) - 1).unsqueeze(1), (codes == count - 1).double().unsqueeze(1)
    for power in range(1, min(MOST_POWER, count - 1) + 1):
        columns = torch.cat((last, places ** torch.arange(power, -1, -1, device="cpu")), dim=1)
        fit = torch.linalg.lstsq(columns, integers.double().unsqueeze(1), driver="gelsd").solution.flatten().float()
        beyond, *coefficients = fit.tolist()
        found = Polynomial(count, beyond, tuple(coefficients))
        if bool(((found.curve(codes.float()) - integers).abs() < 0.4).all()):
            return found
    return None
