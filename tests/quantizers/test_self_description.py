"""What quantizers say of themselves is what they do: steps, levels, scales, integers and units, for every method."""

import math

import pytest
import torch

from common.errors import UserError
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.rounding import as_integers

UNIT_ROUNDOFF = 2.0**-24
WEIGHTS = [(name, bits, "exact") for name, method in METHODS.items() for bits in method.weight_bits]
ACTS = [(name, bits, "exact") for name, method in METHODS.items() for bits in method.act_bits]
SYMMETRIC = [("ours", bits, "symmetric") for bits in range(2, 9)]
PUBLISHED = [("ours", bits, "published") for bits in range(2, 9)]


def activation(name: str, bits: int, levels: str) -> tuple[QuantAct, torch.Tensor]:
    """In evaluation mode, and inputs over its range, such as it sees them."""
    act = METHODS[name].activation(bits, make_scheme(name, abitW=bits, levels=levels))
    x = torch.randn(5000, generator=torch.Generator().manual_seed(bits)) * 1.5
    x = x if METHODS[name].placement == "before_relu" else x.relu()
    act(x)  # initialises a learned scale
    return act.eval(), x


@pytest.mark.parametrize(("name", "bits", "levels"), ACTS + PUBLISHED)
def test_the_steps_are_the_forward_pass(name: str, bits: int, levels: str) -> None:
    act, x = activation(name, bits, levels)
    out = x
    for step in act.steps():
        out = step(out)
    with torch.no_grad():
        assert (out != act(x)).sum() <= 2, "float rounding on a threshold"


@pytest.mark.parametrize(("name", "bits", "levels"), ACTS + PUBLISHED)
def test_positions_ascend_and_codes_and_levels_are_each_others_inverse(name: str, bits: int, levels: str) -> None:
    act, x = activation(name, bits, levels)
    position = act.position(x.double().sort().values)
    assert (position.diff() >= 0).all()
    low, high = act.code_range()
    assert low <= float(position.round().min()) <= float(position.round().max()) <= high
    codes = torch.arange(low, high + 1, dtype=torch.int32)
    assert (act.levels(codes).diff() > 0).all()
    assert torch.equal(act.codes(act.levels(codes)), codes)
    assert torch.equal(act.codes(act.levels(codes).float()), codes)


@pytest.mark.parametrize(("name", "bits", "levels"), ACTS + PUBLISHED)
def test_thresholds_are_where_the_code_changes(name: str, bits: int, levels: str) -> None:
    act, _ = activation(name, bits, levels)
    thresholds, _ = act.thresholds()
    low, high = act.code_range()
    apart = 1e-6 * thresholds.diff().min() if len(thresholds) > 1 else torch.tensor(1e-6)
    assert act.position(thresholds - apart).round().tolist() == list(range(low, high))
    assert act.position(thresholds + apart).round().tolist() == list(range(low + 1, high + 1))


@pytest.mark.parametrize(("name", "bits", "levels"), ACTS + PUBLISHED)
def test_activations_are_integers_times_a_unit(name: str, bits: int, levels: str) -> None:
    act, _ = activation(name, bits, levels)
    low, high = act.code_range()
    found = act.integers()
    assert found is not None
    integers, unit = found
    assert math.gcd(*integers.tolist()) == 1
    torch.testing.assert_close(
        integers.double() * unit, act.levels(torch.arange(low, high + 1)), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize(("name", "bits", "levels"), WEIGHTS + PUBLISHED + SYMMETRIC)
def test_weights_are_levels_times_scales_and_integers_times_units(name: str, bits: int, levels: str) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(bits)) * 0.1
    quantizer = METHODS[name].weight(bits, make_scheme(name, bitW=bits, levels=levels))
    quantizer.initialise(weight)
    with torch.no_grad():
        values = quantizer(weight)
    codes, scales = quantizer.codes(weight), quantizer.scales(weight)
    rows = quantizer.levels()[codes].view(len(scales), -1) * scales[:, None]
    assert torch.equal(rows.view_as(values), values)
    found = quantizer.integers(weight)
    assert found is not None
    integers, units = found
    assert units.dtype == torch.float64
    reals = (integers.view(len(units), -1) * units[:, None]).view_as(values)
    assert float((reals - values).abs().max()) <= 3 * UNIT_ROUNDOFF * float(values.abs().max())


def test_levels_without_a_unit_are_no_integers() -> None:
    assert as_integers(torch.tensor([0.0, 1.0, math.pi], dtype=torch.float64)) is None
    assert as_integers(torch.tensor([0.0, 2.0**-20, 1.0], dtype=torch.float64)) is None, "too far apart"
    integers, unit = as_integers(torch.tensor([-0.3, 0.0, 0.2, 0.5], dtype=torch.float64))
    assert integers.tolist() == [-3, 0, 2, 5]
    assert unit == pytest.approx(0.1)


class Silent(QuantAct):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Plain(WeightQuantizer):
    """Says nothing: its levels are the even ones of [-1, 1]."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return self.levels()[torch.arange(w.numel()) % 2**self.bits].view_as(w)


def test_what_a_new_method_gets_for_nothing() -> None:
    weight = torch.zeros(4, 4)
    integers, unit = Plain(2).integers(weight)
    assert integers[0].tolist() == [-3, -1, 1, 3]
    assert unit.tolist() == [pytest.approx(1 / 3)]
    with pytest.raises(UserError, match="Silent do not say their steps"):
        Silent(2).integers()
