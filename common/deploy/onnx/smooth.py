"""Codes whose thresholds lie on a smooth curve, by an odd polynomial: cheaper for an engine than erf or comparisons.

The quantiles of a normal variable do, for ``ours`` about the mean, and for ``centroid``, behind a ReLU, about zero.
What the polynomial is between two thresholds does not matter, so at 4 bits the ninth power is enough.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.deploy.onnx.nodes import Nodes

LEAST, MOST_TERMS = 5, 10  # thresholds; coefficients
EXACT = 0.75 * 2.0**-21  # per level: of what common.measure.rounding_error grants the steps of a quantizer, 3/4


@dataclass(frozen=True)
class Odd:
    """offset + z (c_0 + c_1 z^2 + ...), z = x - middle clipped to least..most: rounded, the code from 0 on.

    Attributes:
        coefficients: float32, the highest power's first.
    """

    middle: float
    offset: float
    least: float
    most: float
    coefficients: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """In x's type, in the order in which an engine computes it."""
        z = (x - self.middle).clamp(self.least, self.most)
        square, value = z * z, torch.zeros_like(z)
        for one in self.coefficients:
            value = value * square + one
        return value * z + self.offset


def odd_through(thresholds: Tensor) -> Odd | None:
    """The shortest that ascends and passes the thresholds, (T,) float64, at 1/2, 3/2, ...; None: there is none."""
    count = len(thresholds)
    if count < LEAST:
        return None
    middle = float(thresholds[0] + thresholds[-1]) / 2
    places, heights, offset = thresholds - middle, torch.arange(count).double() + 0.5 - count / 2, count / 2
    if not torch.allclose(places, -places.flip(0), rtol=0, atol=1e-9 * float(places[-1])):
        middle, places, heights, offset = 0.0, thresholds, heights + count / 2, 0.0
    above = heights > 0
    if not bool((places[above] > 0).all()):
        return None
    most = float(places[-1] + (places[-1] - places[-2]) / 2)
    at = torch.cat((places[above] / most, torch.ones(1)))
    to = torch.cat((heights[above], heights[-1:] + 0.5))
    weights = torch.ones(len(at)).double()
    weights[-1] = 1e-4  # its end is free, within the last code
    for terms in range(2, MOST_TERMS):
        powers = torch.arange(2 * terms - 1, 0, -2)
        columns, left = (at * most).unsqueeze(1) ** powers * weights.unsqueeze(1), to * weights
        coefficients = torch.zeros(terms)
        for place in range(terms):  # those behind it make good what rounding one to float32 costs
            scale = columns[:, place:].abs().amax(0)
            fit = torch.linalg.lstsq(columns[:, place:] / scale, left.unsqueeze(1), driver="gelsd").solution
            coefficients[place] = fit[0, 0] / scale[0]
            left = left - columns[:, place] * coefficients[place].double()
        found = Odd(middle, offset, -most if offset else 0.0, most, coefficients)
        if _passes(found, thresholds, count):
            return found
    return None


def _passes(odd: Odd, thresholds: Tensor, count: int) -> bool:
    error = odd(thresholds.float()).double() - (torch.arange(count) + 0.5)
    line = odd(torch.linspace(odd.middle, odd.middle + odd.most, 64 * count).double())
    ascends = bool((line.diff() > 0).all()) and float(line[-1]) < count + 0.5
    return ascends and bool((error.abs() < EXACT * (count + 1)).all())


def write_odd(nodes: Nodes, odd: Odd, low: int, name: str, value: str) -> str:
    """The code, under ``name``, of real values; the lowest is ``low``."""
    if odd.middle:
        value = nodes.chain(f"{name}.centred", value, ("middle", "Sub", (odd.middle,)))
    z = nodes.chain(f"{name}.kept", value, ("kept", "Clip", (odd.least, odd.most)))
    square = nodes.add("Mul", [z, z], f"{name}.square")
    leading, *others = odd.coefficients.tolist()
    value = nodes.chain(f"{name}.leading", square, ("leading", "Mul", (leading,)))
    for place, one in enumerate(others):
        value = nodes.chain(f"{name}.plus{place}", value, ("power", "Add", (one,)))
        value = nodes.add("Mul", [value, square if place < len(others) - 1 else z], f"{name}.times{place}")
    return nodes.chain(name, value, ("offset", "Add", (odd.offset + low,)), ("rounded", "Round", ()))
