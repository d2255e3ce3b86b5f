"""Layers that no BatchNorm normalises: running statistics of activations, and weights on the scale of the float ones."""

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.quantizers import METHODS, make_scheme
from common.quantizers.alignq import StandardAlignAct, align, matched_range
from common.quantizers.base import QuantAct
from common.quantizers.learned_scale import LearnedScale, scales_from_first_batch
from common.quantizers.rounding import FLOAT_BITS, exact_grid
from common.quantizers.standardised import StandardisedAct
from common.quantizers.uniform import StandardUniformAct

STANDARDISING = [StandardAlignAct, StandardUniformAct]


def normal(count: int = 20_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def settled(act: StandardisedAct, mean: float = 3.0, std: float = 0.5) -> StandardisedAct:
    act.set_statistics(torch.tensor(mean), torch.tensor(std**2), batches=1)
    return act.eval()


@pytest.mark.parametrize("make", STANDARDISING)
def test_training_averages_the_first_batches_and_then_counts_momentum(make: type[StandardisedAct]) -> None:
    act = make(4).train()
    batches = [normal(seed=seed) * (seed + 1) + seed for seed in range(14)]
    for batch in batches[:4]:
        act(batch)
    torch.testing.assert_close(act.running_mean, torch.stack([b.mean() for b in batches[:4]]).mean())
    torch.testing.assert_close(act.running_var, torch.stack([b.var(correction=0) for b in batches[:4]]).mean())
    for batch in batches[4:]:
        before = act.running_mean.clone()
        act(batch)
    torch.testing.assert_close(act.running_mean, 0.9 * before + 0.1 * batches[-1].mean())


@pytest.mark.parametrize("make", STANDARDISING)
def test_evaluation_freezes_the_statistics_and_refuses_to_do_without(make: type[StandardisedAct]) -> None:
    fresh = make(4).eval()
    assert not fresh.initialised
    with pytest.raises(UserError, match="no statistics yet"):
        fresh(normal())
    with scales_from_first_batch(fresh):
        fresh(normal())
    assert fresh.initialised
    act = settled(make(4))
    state = {key: value.clone() for key, value in act.state_dict().items()}
    act(normal() * 9)
    assert all(torch.equal(value, state[key]) for key, value in act.state_dict().items())
    other = make(4).eval()
    other.load_state_dict(act.state_dict())
    assert torch.equal(other(normal()), act(normal()))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("make", STANDARDISING)
def test_values_are_levels_on_the_scale_of_the_input(make: type[StandardisedAct], bits: int) -> None:
    act, x = settled(make(bits)), normal() * 0.5 + 3
    y = act(x)
    assert y.unique().numel() <= 2**bits
    assert act.code_range() == (0, 2**bits - 1)
    error = (y - x).square().mean()
    for factor in (0.9, 1.1):  # of all scales of the levels, theirs has the least error
        assert ((y - 3) * factor + 3 - x).square().mean() > error
    torch.testing.assert_close(act.levels(act.codes(y)).float(), y, rtol=1e-6, atol=1e-6)
    position = act.position(x.double())
    clear = (position - position.floor() - 0.5).abs() > 1e-3
    assert torch.equal(position.round().int()[clear], act.codes(y)[clear])


@pytest.mark.parametrize(("make", "slope"), [(StandardAlignAct, None), (StandardUniformAct, 1.0)])
def test_statistics_are_constants_to_the_gradient(make: type[StandardisedAct], slope: float | None) -> None:
    act, x = settled(make(3)), (normal(50) * 0.3 + 3).requires_grad_()
    act(x).sum().backward()
    u = ((x - 3) / 0.5).detach().double().requires_grad_()
    align(u * 1, matched_range(3)).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, slope) if slope else u.grad.float())


def test_a_constant_input_gives_itself_and_no_nan() -> None:
    for make in STANDARDISING:
        act, x = make(4).train(), torch.full((8,), 2.0, requires_grad=True)
        y = act(x)
        y.sum().backward()
        torch.testing.assert_close(y, x)
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_matched_range_has_the_least_squared_error(bits: int) -> None:
    u = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    grid = exact_grid(bits, 1.0)
    levels = grid.values(grid.codes(align(u * 1)))
    assert matched_range(bits) == pytest.approx(float((u * levels).mean() / levels.square().mean()), rel=1e-3)
    assert matched_range(FLOAT_BITS) == pytest.approx(
        float((u * align(u * 1)).mean() / align(u * 1).square().mean()), 1e-3
    )


@pytest.mark.parametrize("name", METHODS)
def test_scaled_weights_are_levels_times_scales_and_near_the_float_ones(name: str) -> None:
    bits = max(METHODS[name].weight_bits)
    quantizer = make_scheme(name, bitW=bits).weights(scaled=True)
    w = (normal(6400, seed=3).view(64, 100) * 0.02).requires_grad_()
    quantizer.initialise(w)
    q = quantizer(w)
    scales = quantizer.scales(w).view(-1, 1)
    assert torch.equal(quantizer.levels()[quantizer.codes(w)] * scales, q)
    error = (q - w).square().mean() / w.square().mean()
    assert error < (0.4 if quantizer.bits == 1 else 0.06)
    q.square().sum().backward()
    assert torch.isfinite(w.grad).all()
    assert w.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_scaled_weights_that_are_zero_learn(name: str) -> None:
    """Heads often start at zero; without a gradient of their own they would stay there."""
    quantizer = make_scheme(name, bitW=max(METHODS[name].weight_bits)).weights(scaled=True).train()
    w = torch.zeros(4, 5, requires_grad=True)
    q = quantizer(w)
    assert torch.equal(q, torch.zeros(4, 5))
    (q * torch.arange(20.0).view(4, 5)).sum().backward()
    assert torch.isfinite(w.grad).all()
    assert (w.grad[1:] != 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_inputs_that_can_be_negative_have_codes_of_both_signs_or_none(name: str) -> None:
    scheme = make_scheme(name, abitW=4)
    positive, signed = scheme.unnormalised(positive=True), scheme.unnormalised(positive=False)
    assert isinstance(positive, QuantAct)
    assert (signed is None) == (name in ("dorefa", "bwn", "bwnf", "llsq", "apot"))
    if signed is not None:
        x = normal().requires_grad_()
        y = signed.train()(x)
        assert y.min() < -1
        assert y.max() > 1
        assert 12 < y.unique().numel() <= 16
        assert signed.settings() == (("signed",) if isinstance(signed, LearnedScale) else ())
    assert make_scheme(name).unnormalised(positive=True) is None
