"""Bins of equal probability of a normal variable, and the mean of each: closed forms, with nothing fitted to data.

A value is an integer times a unit, the outermost one 127 units for both signs and 255 behind a ReLU.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.quantizers.polynomial import Polynomial, polynomial_through
from common.quantizers.rounding import SQRT_HALF, Grid, exact_grid, unit_grid


@dataclass(frozen=True)
class Bins:
    """The grid that codes are counted on, and their integers as a polynomial, if there is one; codes count from 0."""

    grid: Grid
    integers: Polynomial | None
    most: int


def thresholds(bits: int, signed: bool) -> Tensor:
    """(n,) float64, ascending: where the code of z passes to the next, or that of |z| if not ``signed``."""
    codes = torch.arange(2**bits - 1, dtype=torch.float64, device="cpu")  # wherever modules are being made
    passed = (codes + 0.5) / (2**bits - 1)
    return torch.erfinv(2 * passed - 1 if signed else passed) / SQRT_HALF


def bin_means(bits: int, signed: bool) -> Tensor:
    """(2^k,) float64, ascending: E[z | bin] of a standard normal z; if not ``signed`` E[|z| | bin], and 0 for code 0.

    Between a and b both are (phi(a) - phi(b)) / (Phi(b) - Phi(a)).

    >>> [round(mean, 4) for mean in bin_means(2, signed=True).tolist()]
    [-1.4991, -0.4437, 0.4437, 1.4991]
    """
    inner = thresholds(bits, signed)
    end = torch.full_like(inner[:1], torch.inf)
    edges = torch.cat((-end if signed else torch.zeros_like(end), inner, end))
    densities = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    means = -densities.diff() / torch.special.ndtr(edges).diff()
    if not signed:
        means[0] = 0
    return means


def centroids(bits: int, signed: bool) -> tuple[Tensor, float]:
    """``bin_means`` as multiples of a unit: (2^k,) integers, float64, ascending, and the unit.

    >>> centroids(2, signed=True)[0].tolist(), centroids(2, signed=False)[0].tolist()
    ([-127.0, -38.0, 38.0, 127.0], [0.0, 60.0, 137.0, 255.0])
    """
    means, most = bin_means(bits, signed), 127 if signed else 255
    return (means / means[-1] * most).round(), float(means[-1]) / most


def levels(bits: int, signed: bool) -> tuple[Tensor, Tensor]:
    """The values that differ, ascending, and the thresholds between them; float64, for a scale of 1."""
    integers, unit = centroids(bits, signed)
    return integers.unique() * unit, thresholds(bits, signed)[integers.diff() > 0]


def table_of(bits: int, signed: bool) -> Tensor:
    """(2^k + 1,) float32: the value of every code, and NaN."""
    integers, unit = centroids(bits, signed)
    return torch.cat((integers * unit, torch.full_like(integers[:1], torch.nan))).float()


@functools.cache
def bins_of(bits: int, signed: bool) -> Bins:
    grid = exact_grid(bits, 1.0) if signed else unit_grid(bits)
    integers, _ = centroids(bits, signed)
    return Bins(grid, polynomial_through(integers), int(integers[-1]))
