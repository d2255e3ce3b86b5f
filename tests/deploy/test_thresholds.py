"""Thresholds: the same codes as the quantizer, for both signs of the scale, behind a ReLU, for constants and on ties."""

import pytest
import torch

from common.deploy.integer.thresholds import Thresholds, integer_thresholds
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import QuantAct

SUMS = torch.arange(-3000, 3001, dtype=torch.int32)
CASES = [(name, bits) for name, method in METHODS.items() for bits in method.act_bits]


def activation(name: str, bits: int) -> QuantAct:
    act = METHODS[name].activation(bits, make_scheme(name, abitW=bits))
    act(torch.rand(100) * 2)  # initialises a learned scale
    return act


def codes(scale: torch.Tensor, shift: torch.Tensor, act: QuantAct, rectified: bool = False) -> torch.Tensor:
    """(C, sums) codes by the layer under test."""
    found = act.integers()
    assert found is not None
    layer = Thresholds(scale, shift, act, found[0], rectified)
    levels = layer(SUMS.expand(1, len(scale), -1)[..., None])[0, ..., 0]
    return torch.searchsorted(layer.integers, levels.contiguous()) + layer.low


@pytest.mark.parametrize(("name", "bits"), CASES)
@pytest.mark.parametrize("rectified", [False, True])
def test_thresholds_are_the_rounded_code(name: str, bits: int, rectified: bool) -> None:
    generator, act = torch.Generator().manual_seed(bits), activation(name, bits)
    scale = torch.randn(40, generator=generator).double() * 2e-3
    shift = torch.randn(40, generator=generator).double()
    scale[::9] = 0
    values = scale[:, None] * SUMS + shift[:, None]
    position = act.position(values.relu() if rectified else values)
    clear = ((position - position.floor()) - 0.5).abs() > 1e-9  # where float64 itself is sure
    clear |= rectified & (values < 0)
    assert clear.double().mean() > 0.99
    assert torch.equal(codes(scale, shift, act, rectified)[clear], position.round().int()[clear])
    assert (scale < 0).any()
    assert (scale > 0).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_those_of_ours_are_the_quantiles_of_the_normal_distribution(bits: int) -> None:
    steps, tie_passes = activation("ours", bits).thresholds()
    n = 2**bits - 1
    expected = torch.special.ndtri((torch.arange(1, n + 1).double() - 0.5) / n)
    torch.testing.assert_close(steps, expected, rtol=1e-12, atol=1e-14)
    assert tie_passes.tolist() == [code % 2 == 0 for code in range(1, n + 1)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_tie_goes_to_the_even_code_whatever_the_sign(bits: int) -> None:
    """At u = 0 the code would be n / 2, halfway between two integers."""
    act = activation("ours", bits)
    even = round((2**bits - 1) / 2)
    assert even % 2 == 0
    for rectified in (False, True):
        found = codes(torch.tensor([0.5, -0.5, 0.0]), torch.zeros(3), act, rectified)[:, SUMS == 0].flatten()
        assert found.tolist() == [even] * 3


def test_a_value_on_a_threshold_of_apot_keeps_the_lower_code() -> None:
    act = activation("apot", 3)
    steps, tie_passes = act.thresholds()
    assert not tie_passes.any()
    found = codes(torch.ones(len(steps)).double(), steps, act)[:, SUMS == 0].flatten()
    assert found.tolist() == list(range(len(steps)))


def test_a_zero_or_vanishing_scale_is_a_constant() -> None:
    found = codes(torch.tensor([0.0, 1e-45, -1e-45]), torch.tensor([0.7, 0.7, 0.7]), activation("ours", 4))
    assert found.unique().tolist() == [round(15 * float(torch.special.ndtr(torch.tensor(0.7))))]


def test_there_are_at_most_n_thresholds_in_order_and_they_are_integers() -> None:
    steps = activation("ours", 4).thresholds()
    thresholds, sign = integer_thresholds(torch.tensor([0.01, -0.01]), torch.tensor([0.3, 0.3]), *steps)
    assert thresholds.shape == (2, 15)
    assert thresholds.dtype == sign.dtype == torch.int32
    assert (thresholds.diff() >= 0).all()
    assert sign.tolist() == [1, -1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        integer_thresholds(torch.tensor([bad]), torch.tensor([0.0]), *activation("ours", 4).thresholds())
