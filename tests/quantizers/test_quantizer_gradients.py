"""Gradients to weights, inputs and learned scales against closed forms, in float64, written value by value."""

import math

import pytest
import torch

from common.quantizers import METHODS, make_scheme
from common.quantizers.alignq import align_activation, align_weight
from common.quantizers.bwn import binary_weight
from common.quantizers.learned_scale import LearnedScale
from common.quantizers.rounding import exact_grid, sigmoid_slope

from .scalar_references import apot_grid, code_range, mean, nearest, phi_cdf, standardised

LAM, LAM2 = 1.3, 3.0
BITS = [1, 2, 3, 4, 8]


def density(u):
    return math.exp(-u * u / 2) / math.sqrt(2 * math.pi)


def logistic(t):
    return 1 / (1 + math.exp(-t))


def through_standardisation(w, h):
    """dL/dw of u = (w - mean) / std, given h = dL/du."""
    u, n = standardised(w), len(w)
    m = mean(w)
    std = math.sqrt(math.fsum((v - m) ** 2 for v in w) / (n - 1))
    along = math.fsum(a * b for a, b in zip(h, u, strict=True)) / (n - 1)
    return [(a - mean(h) - b * along) / std for a, b in zip(h, u, strict=True)]


def ours_weight(w, g, bits, slope=None):
    n = 2**bits - 1
    gains = [1.0] * len(w)
    if slope:
        lam, lam2 = slope
        for i, u in enumerate(standardised(w)):
            s = logistic(2 * lam2 * (n * phi_cdf(u) % 1 - 0.5))
            gains[i] = lam * 2 * lam2 * s * (1 - s)
    h = [a * gain * 2 * density(u) for a, gain, u in zip(g, gains, standardised(w), strict=True)]
    return through_standardisation(w, h)


def gradients(module, x, g):
    """(dx, dscale or None) of sum(module(x) * g)."""
    x = x.clone().requires_grad_()
    (module(x) * g).sum().backward()
    scale = getattr(module, "scale", None)
    return x.grad, None if scale is None else scale.grad.item()


def draw(*shape, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator) * spread
    return x, torch.randn(*shape, dtype=torch.float64, generator=generator)


def same(actual, expected):
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("slope", [None, (LAM, LAM2)], ids=["ste", "sigmoid"])
def test_ours_weights(bits, slope):
    w, g = draw(4, 3, 3, 3, seed=bits, spread=0.2)
    scheme = make_scheme("ours", bitW=bits, grad_approx="sigmoid" if slope else "ste", lam=LAM, lam2=LAM2)
    dw, _ = gradients(METHODS["ours"].weight(bits, scheme), w, g)
    same(dw, ours_weight(w.flatten().tolist(), g.flatten().tolist(), bits, slope))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("act_range", [2.0, 3.0])
def test_ours_activations(bits, act_range):
    x, g = draw(5, 4, seed=bits, spread=1.5)
    scheme = make_scheme("ours", abitW=bits, act_range=act_range)
    dx, _ = gradients(scheme.before_relu(), x, g)
    same(dx, [2 * act_range * density(v) * a for v, a in zip(x.flatten().tolist(), g.flatten().tolist(), strict=True)])


def test_align_stage_without_rounding_by_gradcheck():
    w = draw(3, 4, spread=0.3)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda v: align_weight(v, None), w)
    assert torch.autograd.gradcheck(lambda v: align_activation(v, 2.5, None), w)


def test_sigmoid_and_straight_through_part_ways_after_one_optimizer_step():
    after = {}
    for rule in ("ste", "sigmoid"):
        torch.manual_seed(0)
        conv = make_scheme("ours", bitW=4, grad_approx=rule).conv(3, 4, 3)
        optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
        conv(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        after[rule] = conv.weight.detach()
    assert (after["ste"] - after["sigmoid"]).abs().max() > 1e-4


@pytest.mark.parametrize(("lam", "lam2"), [(1.0, 4.0), (0.5, 2.0), (2.0, 8.0)])
def test_the_sigmoid_slope_over_one_step(lam, lam2):
    thresholds = torch.tensor([0.5, 1.5, 6.5], dtype=torch.float64)
    within = (torch.arange(100000, dtype=torch.float64) + 0.5) / 100000
    for begin in (0.0, 5.0):
        average = sigmoid_slope(begin + within, lam, lam2).mean().item()
        assert average == pytest.approx(lam * (logistic(lam2) - logistic(-lam2)), rel=1e-6)
    peak = sigmoid_slope(thresholds, lam, lam2)
    torch.testing.assert_close(peak, torch.full_like(peak, lam * lam2 / 2))
    assert sigmoid_slope(within, lam, lam2).max() <= peak[0]
    torch.testing.assert_close(sigmoid_slope(0.5 + within / 2, lam, lam2), sigmoid_slope(0.5 - within / 2, lam, lam2))


@pytest.mark.parametrize("bits", BITS)
def test_uniform_weights_are_straight_through(bits):
    w, g = draw(3, 8, seed=bits)
    assert torch.equal(gradients(METHODS["uniform"].weight(bits, make_scheme("uniform")), w, g)[0], g)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("name", "end"), [("uniform", 1.5), ("dorefa", 1.0), ("bwn", 1.0), ("bwnf", 1.0)])
def test_fixed_range_activations_pass_gradient_only_inside(name, end, bits):
    x, g = draw(4, 10, seed=bits)
    dx, _ = gradients(make_scheme(name, abitW=bits, act_range=1.5).after_relu(), x, g)
    assert torch.equal(dx, torch.where((x >= 0) & (x <= end), g, 0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa_weights_differentiate_tanh_and_its_maximum(bits):
    w, g = draw(4, 9, seed=bits)
    dw, _ = gradients(METHODS["dorefa"].weight(bits, make_scheme("dorefa")), w, g)
    t, a = [math.tanh(v) for v in w.flatten().tolist()], g.flatten().tolist()
    top = max(range(len(t)), key=lambda i: abs(t[i]))
    peak = abs(t[top])
    through_peak = -math.fsum(x * y for x, y in zip(a, t, strict=True)) / peak**2 * math.copysign(1, t[top])
    same(dw, [(y / peak + through_peak * (i == top)) * (1 - t[i] ** 2) for i, y in enumerate(a)])


def test_dorefa_equal_maxima_share_the_gradient_as_in_autograd():
    w = torch.tensor([0.5, -0.5, 0.5, 0.1], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, 2.0, -0.5, 0.7], dtype=torch.float64)
    t = torch.tanh(w)
    (expected,) = torch.autograd.grad(((t / t.abs().amax()) * g).sum(), w)
    torch.testing.assert_close(
        gradients(METHODS["dorefa"].weight(4, make_scheme("dorefa")), w.detach(), g)[0], expected
    )


def test_dorefa_one_bit_is_straight_through():
    w, g = draw(4, 9)
    assert torch.equal(gradients(METHODS["dorefa"].weight(1, make_scheme("dorefa")), w, g)[0], g)


@pytest.mark.parametrize("per_filter", [False, True])
def test_binary_weights_follow_xnor_net(per_filter):
    w, g = draw(3, 2, 2, 2)
    expected = []
    for row, grads in zip(w.flatten(1).tolist(), g.flatten(1).tolist(), strict=True):
        group = row if per_filter else w.flatten().tolist()
        alpha, n = mean([abs(v) for v in group]), len(group)
        expected += [a * (1 / n + alpha * (abs(v) <= 1)) for v, a in zip(row, grads, strict=True)]
    assert (w.abs() > 1).any()
    w = w.requires_grad_()
    (binary_weight(w, per_filter) * g).sum().backward()
    same(w.grad, expected)


def learned(name, bits, signed, x, factor):
    """A float64 quantizer with its scale at ``factor`` times its initial value, and that scale."""
    make = METHODS[name].weight if signed else METHODS[name].activation
    quantizer = make(bits, make_scheme(name)).double()
    quantizer.initialise(x)
    with torch.no_grad():
        quantizer.scale *= factor
    return quantizer, quantizer.scale.item()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["weights", "activations"])
@pytest.mark.parametrize("factor", [0.2, 1.0])
def test_lsq(bits, signed, factor):
    x, g = draw(5, 4, 3, seed=bits)
    quantizer, step = learned("lsq", bits, signed, x, factor)
    low, high = code_range(bits, signed)
    features = 60 if signed else 12  # all weights; features of one of the five samples
    dx, ds = gradients(quantizer, x, g)
    expected_dx, expected_ds = [], []
    for v, a in zip((x.flatten() / step).tolist(), g.flatten().tolist(), strict=True):
        inside = low < v < high
        expected_dx.append(a if inside else 0.0)
        expected_ds.append(a * (round(v) - v if inside else low if v <= low else high))
    same(dx, expected_dx)
    assert ds == pytest.approx(math.fsum(expected_ds) / math.sqrt(features * high), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 5])
@pytest.mark.parametrize("factor", [0.4, 1.0])
def test_apot_weights(bits, factor):
    w, g = draw(5, 8, seed=bits, spread=0.1)
    quantizer, alpha = learned("apot", bits, True, w, factor)
    dw, da = gradients(quantizer, w, g)
    grid, h, expected_da = apot_grid(bits - 1), [], []
    for u, a in zip(standardised(w.flatten().tolist()), g.flatten().tolist(), strict=True):
        v = u / alpha
        level = math.copysign(nearest(min(abs(v), 1.0), grid), v)
        h.append(a if abs(v) <= 1 else 0.0)
        expected_da.append(a * (level - v if abs(v) <= 1 else math.copysign(1, v)))
    same(dw, through_standardisation(w.flatten().tolist(), h))
    assert da == pytest.approx(math.fsum(expected_da), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_apot_activations(bits):
    x, g = draw(6, 8, seed=bits, spread=6.0)
    quantizer, alpha = learned("apot", bits, False, x, 1.0)
    dx, da = gradients(quantizer, x, g)
    grid, expected_dx, expected_da = apot_grid(bits), [], []
    for v, a in zip((x.flatten() / alpha).tolist(), g.flatten().tolist(), strict=True):
        expected_dx.append(a if 0 <= v <= 1 else 0.0)
        expected_da.append(a * (nearest(v, grid) - v if 0 <= v <= 1 else float(v > 1)))
    same(dx, expected_dx)
    assert da == pytest.approx(math.fsum(expected_da), rel=1e-5, abs=1e-5)


def squared_error(x, alpha, low, high):
    return math.fsum((v - alpha * min(max(round(v / alpha), low), high)) ** 2 for v in x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False], ids=["weights", "activations"])
@pytest.mark.parametrize("factor", [0.05, 0.3, 1.0, 4.0, 12.0])
def test_llsq_scales_follow_their_own_rule_whatever_the_loss(bits, signed, factor):
    x, g = draw(4, 20, seed=bits)
    x = x if signed else x.relu()
    quantizer, alpha = learned("llsq", bits, signed, x, factor)
    low, high = code_range(bits, signed)
    half, kept, double = (squared_error(x.flatten().tolist(), f * alpha, low, high) for f in (0.5, 1.0, 2.0))
    direction = 1 if half < min(kept, double) else -1 if double < min(kept, half) else 0
    for gradient in (g, -7 * g, torch.zeros_like(g)):
        quantizer.scale.grad = None
        dx, da = gradients(quantizer, x, gradient)
        assert da == pytest.approx(direction * alpha**2, rel=1e-12)
        inside = (x / alpha >= low) & (x / alpha <= high)
        assert torch.equal(dx, torch.where(inside, gradient, 0))


def test_llsq_descends_to_a_scale_that_halving_and_doubling_do_not_improve():
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.randn(8, 4, 3, 3) * 0.1)
    for factor in (0.1, 10.0):
        quantizer, _ = learned("llsq", 4, True, w.detach(), factor)
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
        for _ in range(200):
            optimizer.zero_grad()
            quantizer(w).sum().backward()
            optimizer.step()
        alpha = quantizer.scale.item()
        half, kept, double = (squared_error(w.flatten().tolist(), f * alpha, -8, 7) for f in (0.5, 1.0, 2.0))
        assert kept <= 1.05 * min(half, double)


@pytest.mark.parametrize("name", METHODS)
def test_a_scale_gradient_reaches_the_optimizer_through_the_convolution(name):
    scheme = make_scheme(name, bitW=4, abitW=4)
    net = torch.nn.Sequential(scheme.conv(2, 4, 3), scheme.before_relu(), torch.nn.ReLU(), scheme.after_relu())
    net(torch.rand(2, 2, 6, 6)).square().sum().backward()
    for module in net.modules():
        if isinstance(module, LearnedScale):
            assert module.scale.grad is not None
            assert module.scale.grad.shape == ()
    assert torch.isfinite(net[0].weight.grad).all()


@pytest.mark.parametrize("bits", [1, 4])
def test_the_straight_through_gradient_of_ours_is_that_of_the_unrounded_alignment(bits):
    w, g = draw(3, 7)
    rounded, free = (w.clone().requires_grad_() for _ in range(2))
    (align_weight(rounded, exact_grid(bits, 1.0)) * g).sum().backward()
    u = (free - free.mean()) / free.std()
    (torch.erf(u / math.sqrt(2)) * g).sum().backward()
    torch.testing.assert_close(rounded.grad, free.grad)
