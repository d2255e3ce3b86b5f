"""k bits never mean more than 2^k levels, and the methods that promise all of them deliver all of them.

Centroids that are integers over 127 or 255 coincide near zero at 7 and 8 bits.
"""

import pytest
import torch

from common.quantizers import METHODS, make_scheme

WEIGHT_CASES = [(name, bits) for name, method in METHODS.items() for bits in method.weight_bits]
ACT_CASES = [(name, bits) for name, method in METHODS.items() for bits in method.act_bits]


CENTROIDS = {7: 123, 8: 155}  # of weights
HALF_CENTROIDS = {7: 119, 8: 148}  # behind a ReLU


def weight_levels(bits: int, name: str) -> int | None:
    """Levels that a method has: all 2^k but for apot, whose sign bit has no negative zero, and the binary ones; most of
    them for centroid from 7 bits on.

    None: a method that is not one of the eight, and has those that it says.
    """
    all_of_them = dict.fromkeys(("ours", "uniform", "dorefa", "lsq", "llsq"), 2**bits)
    return (all_of_them | {"apot": 2**bits - 1, "bwn": 2, "bwnf": 2, "centroid": CENTROIDS.get(bits, 2**bits)}).get(
        name
    )


def per_filter(levels: torch.Tensor) -> int:
    return max(row.unique().numel() for row in levels.flatten(1))


@pytest.fixture
def weight() -> torch.Tensor:
    """Two filters of normal quantiles and an even ramp, so that every level of every grid is met in each."""
    quantiles = torch.special.ndtri((torch.arange(10000, dtype=torch.float64) + 0.5) / 10000)
    values = torch.cat([quantiles, torch.linspace(-4.1, 4.1, 601, dtype=torch.float64)]).float() * 0.05
    return torch.stack([values, values.flip(0)])


def covering(quantizer, x):
    """The quantizer, its learned step (if any) such that its codes span x; LSQ's own 8-bit step begins far wider."""
    if hasattr(quantizer, "low"):
        quantizer.initialise(x)
        with torch.no_grad():
            quantizer.scale.copy_(x.abs().max() / max(-quantizer.low, quantizer.high))
    return quantizer


@pytest.mark.parametrize(("name", "bits"), WEIGHT_CASES)
def test_weight_levels(name, bits, weight):
    quantizer = covering(METHODS[name].weight(bits, make_scheme(name)), weight)
    levels = quantizer(weight)
    assert per_filter(levels) == len(quantizer.levels())
    assert weight_levels(bits, name) in (len(quantizer.levels()), None)
    assert per_filter(levels) <= 2**quantizer.bits <= 2**bits
    if name not in ("bwnf", "centroid"):  # which have one scale, and so levels, per filter
        assert levels.unique().numel() == per_filter(levels)


@pytest.mark.parametrize(("name", "bits"), WEIGHT_CASES)
def test_weight_levels_of_ordinary_weights_never_exceed_the_width(name, bits):
    w = torch.randn(8, 16, 3, 3) * torch.rand(8, 1, 1, 1)
    assert per_filter(METHODS[name].weight(bits, make_scheme(name))(w)) <= 2**bits


@pytest.mark.parametrize(("name", "bits"), ACT_CASES)
def test_activation_levels(name, bits):
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.linspace(-4, 4, 4001)])
    if METHODS[name].placement != "before_relu":
        x = x.relu()
    quantizer = covering(METHODS[name].activation(bits, make_scheme(name)), x)
    expected = HALF_CENTROIDS.get(bits, 2**bits) if name == "centroid" else 2**bits
    assert quantizer(x).unique().numel() == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_ours_has_half_its_levels_and_zero_behind_the_relu(bits):
    scheme = make_scheme("ours", bitW=bits, abitW=bits)
    received = torch.relu(scheme.before_relu()(torch.linspace(-8, 8, 20001)))
    assert received.unique().numel() == 2 ** (bits - 1) + 1


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_published_grid_has_2rn_plus_1_levels(bits):
    n = 2**bits - 1
    scheme = make_scheme("ours", bitW=bits, abitW=bits, levels="published")
    assert scheme.before_relu()(torch.linspace(-8, 8, 80001)).unique().numel() == 4 * n + 1
    w = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000).reshape(1, 20000)
    assert METHODS["ours"].weight(bits, scheme)(w).unique().numel() == 2 * n + 1


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_weights_are_signed_integers_of_k_bits(bits):
    """2^k - 1 of them, zero among them; activations keep the exact levels."""
    scheme = make_scheme("ours", bitW=bits, abitW=bits, levels="symmetric")
    w = torch.special.ndtri((torch.arange(20000, dtype=torch.float64) + 0.5) / 20000).reshape(1, 20000)
    quantizer = METHODS["ours"].weight(bits, scheme)
    integers, unit = quantizer.integers(w.float())
    most = 2 ** (bits - 1) - 1
    assert integers.unique().tolist() == list(range(-most, most + 1))
    assert float(unit) == 1 / most
    x = torch.linspace(-8, 8, 80001)
    assert torch.equal(scheme.before_relu()(x), make_scheme("ours", bitW=bits, abitW=bits).before_relu()(x))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("name", ["bwn", "bwnf"])
def test_binary_weights_are_reported_as_one_bit_whatever_was_asked_for(name, bits):
    assert METHODS[name].reported_weight_bits == 1
    assert make_scheme(name, bitW=bits).conv(3, 4, 3).weight_quantizer.bits == 1
