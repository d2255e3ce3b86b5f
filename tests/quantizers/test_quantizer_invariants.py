"""What holds for any tensor: order is kept, ranges are kept, and "ours" sees no scale or shift of its weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quantizers import METHODS, make_scheme
from common.quantizers.alignq import align_weight
from common.quantizers.base import WeightQuantizer
from common.quantizers.rounding import exact_grid

WIDTHS = st.integers(2, 5)
NUMBERS = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30)
brief = settings(max_examples=25, deadline=None, derandomize=True)


def ordered(levels):
    return (levels.diff() >= 0).all()


@pytest.mark.parametrize("name", METHODS)
@brief
@given(bits=WIDTHS, numbers=NUMBERS)
def test_a_larger_weight_or_activation_never_gets_a_smaller_level(name, bits, numbers):
    scheme = make_scheme(name)
    x = torch.tensor(sorted(numbers))
    assert ordered(METHODS[name].weight(bits, scheme)(x.reshape(1, -1)).flatten())
    assert ordered(METHODS[name].activation(bits, scheme)(x))


@pytest.mark.parametrize("name", METHODS)
@brief
@given(bits=WIDTHS, numbers=NUMBERS)
def test_activation_levels_stay_in_the_methods_range(name, bits, numbers):
    quantizer = METHODS[name].activation(bits, make_scheme(name))
    levels = quantizer(torch.tensor(numbers))
    ranges = {"ours": (-2, 2), "uniform": (0, 2), **dict.fromkeys(("dorefa", "bwn", "bwnf"), (0, 1))}
    if name == "apot":
        ranges[name] = (0, quantizer.scale.item())
    elif name == "centroid":
        ranges[name] = (0, quantizer.scale.item() * quantizer.ends[1])
    elif name in ("lsq", "llsq"):
        ranges[name] = (0, quantizer.scale.item() * quantizer.high)
    low, high = ranges.get(name) or quantizer.levels(torch.tensor(quantizer.code_range())).tolist()
    assert levels.min() >= low * (1 + 1e-6)
    assert levels.max() <= high * (1 + 1e-6)


@brief
@given(scale=st.floats(1e-20, 1e20), shift=st.floats(-3, 3))
def test_ours_is_blind_to_scale_and_shift_of_the_weights(scale, shift):
    w = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(align_weight(scale * (w + shift), None), align_weight(w, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [1.0, 2.0])
@pytest.mark.parametrize("bits", range(1, 9))
def test_opposite_levels_cancel_to_the_last_bit(bits, r, dtype):
    levels = exact_grid(bits, r).values(torch.arange(2**bits, dtype=dtype))
    assert torch.equal(levels, -levels.flip(0)), "else the ReLU behind a residual sum decides by rounding noise"
    assert levels[-1] == r


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_stay_last_and_change_no_value(method: str) -> None:
    scheme = make_scheme(method, bitW=4, abitW=4)
    x = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0)).relu_()
    for quantizer in (scheme.weights(), METHODS[method].activation(4, scheme)):
        if isinstance(quantizer, WeightQuantizer):
            quantizer.initialise(x)
        expected, found = quantizer(x), quantizer(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # means are summed in another order
        assert found.is_contiguous(memory_format=torch.channels_last)
