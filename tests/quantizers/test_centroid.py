"""Centroids: the tables by integration, their integers, gradients in closed form, what stays of a normal variable."""

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from common.conversion import calibrate, quantize_model
from common.quantizers import make_scheme
from common.quantizers.bins import bin_means, centroids, thresholds
from common.quantizers.centroid import CentroidAct, CentroidWeight
from common.quantizers.polynomial import polynomial_through

WIDTHS = range(1, 9)
SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["weights", "activations"])
# share of a normal variable's variance that is lost, at 8, 4, 3 and 2 bits: docs/centroid.md
LOST = {True: {8: 0.0005, 4: 0.0147, 3: 0.0396, 2: 0.1175}, False: {8: 0.0002, 4: 0.0061, 3: 0.0161, 2: 0.0484}}


def quantizer(bits: int, signed: bool) -> CentroidWeight | CentroidAct:
    return CentroidWeight(bits) if signed else CentroidAct(bits)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@SIGNED
@pytest.mark.parametrize("bits", WIDTHS)
def test_thresholds_have_the_quantiles_of_the_alignment_and_means_those_of_integration(bits: int, signed: bool) -> None:
    n, law = 2**bits - 1, stats.norm if signed else stats.halfnorm
    at = thresholds(bits, signed).tolist()
    assert at == pytest.approx(law.ppf([(j - 0.5) / n for j in range(1, n + 1)]), abs=1e-9)
    edges = [-math.inf if signed else 0.0, *at, math.inf]
    means = bin_means(bits, signed).tolist()
    for code, (low, high, found) in enumerate(zip(edges[:-1], edges[1:], means, strict=True)):
        part, _ = integrate.quad(lambda z: z * law.pdf(z), low, high, epsabs=1e-12)
        share, _ = integrate.quad(law.pdf, low, high, epsabs=1e-12)
        assert found == pytest.approx(part / share if signed or code else 0.0, abs=1e-6)


@SIGNED
@pytest.mark.parametrize("bits", WIDTHS)
def test_values_are_integers_over_the_outermost_and_within_half_a_unit_of_the_means(bits: int, signed: bool) -> None:
    integers, unit = centroids(bits, signed)
    most = 127 if signed else 255
    assert integers[-1] == most
    assert torch.equal(integers, integers.round())
    assert torch.equal(integers, -integers.flip(0)) if signed else integers[0] == 0
    assert (integers * unit - bin_means(bits, signed)).abs().max() <= unit / 2 * (1 + 1e-12)
    assert (integers.diff() > 0).all() if bits <= 6 else (integers.diff() == 0).any()


@SIGNED
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_integers_of_few_codes_are_a_polynomial(bits: int, signed: bool) -> None:
    integers, _ = centroids(bits, signed)
    found = polynomial_through(integers)
    assert (found is not None) == (bits <= (3 if signed else 4))  # of both signs two ends lie off the curve
    if found is not None:
        for dtype in (torch.float32, torch.float64):
            assert torch.equal(found(torch.arange(2**bits).to(dtype)), integers.to(dtype))
        assert found(torch.tensor(math.nan)).isnan()
    shuffled = integers[torch.randperm(len(integers), generator=torch.Generator().manual_seed(0))]
    assert bits < 4 or polynomial_through(shuffled) is None


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_convolution_of_8_bit_integers_is_exact(bits: int) -> None:
    conv = make_scheme("centroid", bitW=bits, abitW=bits).conv(16, 8, 3)
    x = normal(2, 16, 9, 9).relu().float()
    conv(x)  # the first data give the scale
    weight, act = conv.weight_quantizer, conv.input_quantizer
    (integers, units), found = weight.integers(conv.weight), act.integers()
    assert found is not None
    values, unit = found
    assert integers.abs().max() <= 127
    assert 0 <= values.min() <= values.max() <= 255
    codes = values[act.codes(act(x)).long()]
    sums = nn.functional.conv2d(codes.int(), integers.int())
    assert torch.equal(sums.double(), nn.functional.conv2d(codes.double(), integers.double()))
    torch.testing.assert_close(
        (sums * (units * unit).view(-1, 1, 1)).float(),
        conv(x).detach() - conv.bias.detach().view(-1, 1, 1),
        rtol=1e-4,
        atol=1e-4,
    )


@SIGNED
@pytest.mark.parametrize("bits", LOST[True])
def test_what_is_lost_of_a_normal_variable(bits: int, signed: bool) -> None:
    z = torch.special.ndtri((torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000)
    z = z.view(1, -1) if signed else z.relu()
    module = quantizer(bits, signed).double()
    if isinstance(module, CentroidAct):
        module.set_initial(torch.tensor(1.0))
    lost = (module(z).detach() - z).square().mean() / z.square().mean()
    assert float(lost) == pytest.approx(LOST[signed][bits], abs=1e-4)


@pytest.mark.parametrize("bits", WIDTHS)
def test_weights_are_straight_through_and_their_scale_is_differentiated(bits: int) -> None:
    w, g = normal(4, 3, 3, 3, seed=bits) * 0.2, normal(4, 3, 3, 3, seed=bits + 9)
    module, w = CentroidWeight(bits).double(), w.requires_grad_()
    values = module(w)
    (values * g).sum().backward()
    for row, grad, value, found in zip(*(t.detach().flatten(1).tolist() for t in (w, g, values, w.grad)), strict=True):
        s = math.sqrt(math.fsum(v * v for v in row) / len(row))
        to_scale = math.fsum(a * (q - v) / s for a, q, v in zip(grad, value, row, strict=True))
        assert found == pytest.approx(
            [a + v / s * to_scale / len(row) for a, v in zip(grad, row, strict=True)], rel=1e-6
        )


@SIGNED
@pytest.mark.parametrize("bits", WIDTHS)
def test_activations_pass_gradient_between_the_ends_and_their_scale_learns_as_lsqs_step(
    bits: int, signed: bool
) -> None:
    x, g = normal(5, 4, 3, seed=bits) * 2, normal(5, 4, 3, seed=bits + 9)
    module = CentroidAct(bits, signed).double()
    module.set_initial(torch.tensor(0.7))
    x = x.requires_grad_()
    values = module(x)
    (values * g).sum().backward()
    end, codes = float(bin_means(bits, signed)[-1]), (2**bits - 1) / (2 if signed else 1)
    low, s = -end if signed else 0.0, module.scale.item()
    to_x, to_scale = [], []
    for v, q, a in zip((x / s).flatten().tolist(), (values / s).flatten().tolist(), g.flatten().tolist(), strict=True):
        to_x.append(a if low <= v <= end else 0.0)
        to_scale.append(a * (q - v if low <= v <= end else q))
    assert x.grad.flatten().tolist() == pytest.approx(to_x)
    gain = (codes / end) ** 2 / math.sqrt(12 * codes)
    assert module.scale.grad.item() == pytest.approx(gain * math.fsum(to_scale), rel=1e-5, abs=1e-5)


def test_a_layer_keeps_its_input_and_what_its_convolution_reads() -> None:
    scheme = make_scheme("centroid", bitW=4, abitW=4)
    conv = scheme.conv(16, 16, 3, bias=False)
    x = torch.rand(2, 16, 9, 9, requires_grad=True)
    conv.input_quantizer(x)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        conv(x)
    large = {t.data_ptr(): t for t in kept if t.numel() == x.numel()}
    assert large.pop(x.data_ptr()) is not None
    (read,) = large.values()
    assert torch.equal(read, conv.input_quantizer(x))
    assert {t.data_ptr() for t in kept if t.shape == conv.weight.shape} >= {conv.weight.data_ptr()}
    assert len({t.data_ptr() for t in kept if t.shape == conv.weight.shape}) == 2


def test_a_converted_network_can_be_used_right_after_calibration() -> None:
    """Its outputs are near the float network's, where those of ``ours`` are another network's."""
    torch.manual_seed(0)
    blocks = [m for c in (3, 16, 16) for m in (nn.Conv2d(c, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    network = nn.Sequential(*blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10)).train()
    images = torch.randn(64, 3, 8, 8)
    calibrate.calibrate(network, [images]).eval()
    error = {}
    for name in ("ours", "centroid"):
        quantized = calibrate.calibrate(quantize_model(network, name, bitW=4, abitW=4), [images]).eval()
        with torch.no_grad():
            expected = network(images)
            error[name] = float((quantized(images) - expected).square().mean() / expected.var())
    assert error["centroid"] < 0.1
    assert error["ours"] > 3 * error["centroid"]
