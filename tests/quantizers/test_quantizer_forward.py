"""Every method computes its paper's formula, to the last level."""

import pytest
import torch

from common.quantizers import METHODS, make_scheme
from common.quantizers.apot import apot, apot_levels
from common.quantizers.learned_scale import LearnedScale

from . import scalar_references as reference

WEIGHT_CASES = [(name, bits) for name in reference.WEIGHTS for bits in METHODS[name].weight_bits]
ACT_CASES = [(name, bits) for name in reference.ACTIVATIONS for bits in METHODS[name].act_bits]


def off_centre(quantizer, x):
    """The quantizer in float64, its learned scale at 0.7 of the initial value, so that ends clip; and that scale."""
    quantizer = quantizer.double()
    if not isinstance(quantizer, LearnedScale):
        return quantizer, None
    quantizer.initialise(x)
    with torch.no_grad():
        quantizer.scale *= 0.7
    return quantizer, quantizer.scale.item()


def test_every_registered_method_has_a_scalar_reference():
    assert set(reference.WEIGHTS) == set(METHODS)
    assert set(reference.ACTIVATIONS) == set(METHODS)


@pytest.mark.parametrize(("name", "bits"), WEIGHT_CASES)
def test_weights_follow_the_papers_formula(name, bits):
    w = torch.randn(6, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 0.3 + 0.05
    quantizer, scale = off_centre(METHODS[name].weight(bits, make_scheme(name)), w)
    expected = reference.WEIGHTS[name](w.flatten(1).tolist(), bits, scale)
    torch.testing.assert_close(quantizer(w).flatten(1), torch.tensor(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "bits"), ACT_CASES)
def test_activations_follow_the_papers_formula(name, bits):
    x = torch.randn(4, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 1.5
    quantizer, scale = off_centre(METHODS[name].activation(bits, make_scheme(name)), x.relu())
    if name == "apot":  # its clipping value begins at 8, beyond these data
        x = 5 * x
    expected = reference.ACTIVATIONS[name](x.flatten().tolist(), bits, scale)
    torch.testing.assert_close(quantizer(x).flatten(), torch.tensor(expected).double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", METHODS["lsq"].weight_bits)
def test_scales_begin_at_the_papers_values(bits):
    w = torch.randn(8, 3, 3, 3, dtype=torch.float64)
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    mean, peak = w.abs().mean().item(), w.abs().max().item()
    begin = {
        "lsq": (2 * mean / (2 ** (bits - 1) - 1) ** 0.5, 2 * x.mean().item() / (2**bits - 1) ** 0.5),
        "llsq": (peak / 2 ** (bits - 1), x.max().item() / (2**bits if bits >= 4 else 2 * (2**bits - 1))),
    }
    for name, (for_weights, for_activations) in begin.items():
        for make, data, expected in (
            (METHODS[name].weight, w, for_weights),
            (METHODS[name].activation, x, for_activations),
        ):
            quantizer = make(bits, make_scheme(name)).double()
            quantizer(data)
            assert quantizer.scale.item() == pytest.approx(expected, rel=1e-6)
            assert quantizer.reference.item() == quantizer.scale.item()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_apot_begins_where_its_error_is_least(bits):
    generator = torch.Generator().manual_seed(bits)
    w, x = torch.randn(8, 4, 3, 3, generator=generator), torch.rand(500, generator=generator) ** 3
    scheme = make_scheme("apot", bitW=bits, abitW=bits)
    for quantizer, data in (
        (METHODS["apot"].weight(bits, scheme), (w - w.mean()) / w.std()),
        (METHODS["apot"].activation(bits, scheme), x),
    ):
        quantizer(data)

        def error(alpha, quantizer=quantizer, data=data):
            levels = (
                torch.cat((-quantizer.magnitudes, quantizer.magnitudes)) if quantizer.signed else quantizer.magnitudes
            )
            return (data.reshape(-1, 1) - alpha * levels).abs().amin(1).square().mean().item()

        tried = [error(data.abs().max() * step / 32) for step in range(1, 33)]
        assert error(quantizer.scale.detach()) == pytest.approx(min(tried), rel=1e-4)
        assert min(tried) < 0.9 * error(torch.tensor(8.0))


def test_apot_takes_the_smaller_magnitude_on_a_tie():
    levels = apot_levels(2)  # 0, 1/4, 1/2, 1
    thresholds = (levels[1:] + levels[:-1]) / 2
    at = apot(torch.cat([thresholds, -thresholds]), torch.tensor(1.0), levels, thresholds, signed=True)
    assert at.tolist() == [0.0, 0.25, 0.5, -0.0, -0.25, -0.5]


def test_one_bit_weights_have_no_zero():
    w = torch.tensor([[0.0, -0.0], [1.0, -3.0]])
    for name in ("dorefa", "bwn"):
        assert METHODS[name].weight(1, make_scheme(name))(w).tolist() == [[1.0, 1.0], [1.0, -1.0]]
    assert METHODS["bwnf"].weight(1, make_scheme("bwnf"))(w + torch.tensor([[0.0, 2.0], [0, 0]])).tolist() == [
        [1.0, 1.0],
        [2.0, -2.0],
    ]
