"""The published modules' outputs, where they are right."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.quantizers import METHODS, make_scheme
from common.quantizers.alignq import align_activation, align_weight
from common.quantizers.apot import APoTAct, APoTWeight, apot_levels
from common.quantizers.bwn import binary_weight
from common.quantizers.lsq import lsq
from common.quantizers.rounding import code_range, exact_grid, published_grid

FILE = Path(__file__).parents[1] / "golden" / "quantizers.npz"
WIDTHS = [2, 3, 4, 5, 8]


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def check(golden, prefix, quantize, kind):
    """Output and input gradient of ``quantize``; no level may be off in arrays this small."""
    x = golden[f"in.{kind}"].clone().requires_grad_()
    y = quantize(x)
    (y * golden[f"in.G{kind}"]).sum().backward()
    torch.testing.assert_close(y, golden[f"{prefix}.y"], rtol=0, atol=1e-6)
    torch.testing.assert_close(x.grad, golden[f"{prefix}.dx"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bits", WIDTHS)
def test_ours_exact_grid(golden, bits):
    check(golden, f"ours_cdf.w{bits}", lambda w: align_weight(w, exact_grid(bits, 1.0)), "W")
    check(golden, f"ours_cdf.a{bits}", lambda x: align_activation(x, 2.0, exact_grid(bits, 2.0)), "X")


def test_ours_other_range_and_cdf(golden):
    check(golden, "ours_cdf.a4_range3", lambda x: align_activation(x, 3.0, exact_grid(4, 3.0)), "X")
    cdf = (align_weight(golden["in.W"], None) + 1) / 2
    torch.testing.assert_close(cdf, golden["ours_cdf.weight_cdf"], rtol=0, atol=1e-6)


def test_ours_at_32_bits_is_plain(golden):
    scheme = make_scheme("ours")
    check(golden, "ours_cdf.a32", scheme.before_relu(), "X")
    assert torch.equal(golden["ours_cdf.w32.y"], golden["in.W"])


@pytest.mark.parametrize("bits", WIDTHS)
def test_ours_published_grid(golden, bits):
    check(golden, f"ours_admm.w{bits}", lambda w: align_weight(w, published_grid(bits)), "W")
    check(golden, f"ours_admm.a{bits}", lambda x: align_activation(x, 2.0, published_grid(bits)), "X")


@pytest.mark.parametrize("bits", WIDTHS)
def test_lsq(golden, bits):
    low, high = code_range(bits, signed=True)
    step = golden[f"lsq.w{bits}.s"].clone().requires_grad_()
    gain = (golden["in.W"].numel() * high) ** -0.5
    check(golden, f"lsq.w{bits}", lambda w: lsq(w, step, low, high, gain), "W")
    torch.testing.assert_close(step.grad, golden[f"lsq.w{bits}.ds"], rtol=1e-5, atol=2e-6)
    fixed = golden[f"lsq.a{bits}.s"].reshape(())
    check(golden, f"lsq.a{bits}", lambda x: lsq(x, fixed, *code_range(bits, signed=False)), "X")


@pytest.mark.parametrize("bits", WIDTHS)
def test_dorefa_activations(golden, bits):
    check(golden, f"dorefa.a{bits}", METHODS["dorefa"].activation(bits, make_scheme("dorefa")), "X")


def test_bwnf_forward(golden):
    torch.testing.assert_close(binary_weight(golden["in.W"], True), golden["bwnf.w4.y"], rtol=0, atol=1e-6)


def test_apot_grids(golden):
    for key, levels in (
        *((f"apot.a{bits}.grid", APoTAct(bits).magnitudes) for bits in (2, 3, 4, 5)),
        *((f"apot.w{bits}.grid", APoTWeight(bits).magnitudes) for bits in (3, 4, 5)),
        ("apot.grid6", apot_levels(6).float()),
    ):
        torch.testing.assert_close(levels, golden[key], rtol=0, atol=1e-6)
