"""Thresholds: the same codes as rounding the CDF, for both signs of the scale, for constants and on ties."""

import pytest
import torch

from common.deploy.integer.thresholds import Thresholds, integer_thresholds

SUMS = torch.arange(-3000, 3001, dtype=torch.int32)


def codes(scale: torch.Tensor, shift: torch.Tensor, bits: int) -> torch.Tensor:
    """(C, sums) codes by the layer under test."""
    layer = Thresholds(scale, shift, bits)
    levels = layer(SUMS.expand(1, len(scale), -1)[..., None])[0, ..., 0]
    return (levels + 2**bits - 1) // 2


@pytest.mark.parametrize("bits", range(1, 9))
def test_thresholds_are_the_rounded_cdf(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    scale = torch.randn(40, generator=generator).double() * 2e-3
    shift = torch.randn(40, generator=generator).double()
    scale[::9] = 0
    position = (2**bits - 1) * torch.special.ndtr(scale[:, None] * SUMS + shift[:, None])
    clear = ((position - position.floor()) - 0.5).abs() > 1e-9  # where float64 itself is sure
    assert clear.double().mean() > 0.999
    assert torch.equal(codes(scale, shift, bits)[clear], position.round().int()[clear])
    assert (scale < 0).any()
    assert (scale > 0).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_tie_goes_to_the_even_code_whatever_the_sign(bits: int) -> None:
    """At u = 0 the code would be n / 2, halfway between two integers."""
    found = codes(torch.tensor([0.5, -0.5, 0.0]), torch.zeros(3), bits)[:, SUMS == 0].flatten()
    even = round((2**bits - 1) / 2)
    assert found.tolist() == [even] * 3
    assert even % 2 == 0


def test_a_zero_or_vanishing_scale_is_a_constant() -> None:
    found = codes(torch.tensor([0.0, 1e-45, -1e-45]), torch.tensor([0.7, 0.7, 0.7]), 4)
    assert found.unique().tolist() == [round(15 * float(torch.special.ndtr(torch.tensor(0.7))))]


def test_there_are_at_most_n_thresholds_in_order_and_they_are_integers() -> None:
    thresholds, sign = integer_thresholds(torch.tensor([0.01, -0.01]), torch.tensor([0.3, 0.3]), 4)
    assert thresholds.shape == (2, 15)
    assert thresholds.dtype == sign.dtype == torch.int32
    assert (thresholds.diff() >= 0).all()
    assert sign.tolist() == [1, -1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        integer_thresholds(torch.tensor([bad]), torch.tensor([0.0]), 4)
