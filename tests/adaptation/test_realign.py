"""Re-alignment: the statistics are those of the images, the prior is a prior, and chance, order and labels have no part."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.adaptation.realign import (
    FEWEST,
    Moments,
    layers_with_statistics,
    of_images,
    pooled,
    realign,
    share,
)
from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.errors import UserError
from common.quantizers import METHODS
from tests.deploy.test_packed import network_of


def images_of(count: int, shift: float = 1.0, scale: float = 2.0, seed: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * scale + shift


def network(method: str = "ours", bits: int = 4, **config: Any) -> nn.Module:
    return network_of("resnet20_quant", method=method, bitW=bits, abitW=bits, **config)[0]


def inputs_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each layer with statistics is given."""
    seen: dict[str, Tensor] = {}
    hooks = [
        norm.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].clone()}))
        for name, norm in layers_with_statistics(model).items()
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("running_mean", "running_var"))}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("bits", [32, 4])
def test_without_a_prior_every_layer_has_the_statistics_of_what_it_then_sees(bits: int) -> None:
    model, images = network(bits=bits), images_of(12)
    found = realign(model, images, prior=0)
    for name, x in inputs_of(model, images).items():
        var, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
        norm = layers_with_statistics(model)[name]
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.statistics[name], torch.stack((norm.running_mean, norm.running_var)))


def test_an_infinite_prior_leaves_the_source() -> None:
    model = network()
    before = statistics_of(model)
    realign(model, images_of(12), prior=math.inf)
    assert same(before, statistics_of(model))


def test_nothing_but_statistics_changes_and_the_logits_are_those_of_the_result() -> None:
    for method in METHODS:
        model = network(method, max(set(METHODS[method].act_bits) & set(METHODS[method].weight_bits)))
        state, images = copy.deepcopy(model.state_dict()), images_of(9)
        found = realign(model, images, prior=4)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
        assert changed == set(statistics_of(model)), method
        with torch.no_grad():
            torch.testing.assert_close(found.logits, model(images), rtol=1e-3, atol=1e-3)


def test_repetition_and_order_give_the_same_bits() -> None:
    images = images_of(20)
    found = [realign(network(), x, prior=16) for x in (images, images, images.flip(0), images[torch.randperm(20)])]
    assert all(same(found[0].statistics, other.statistics) for other in found[1:])
    assert torch.equal(found[0].logits, found[2].logits.flip(0))


def test_images_that_do_not_fit_into_memory_give_the_same_layer_by_layer() -> None:
    images = images_of(20)
    whole, parts = (realign(network(bits=32), images, prior=16, at_once=count) for count in (None, 7))
    for name, values in whole.statistics.items():
        torch.testing.assert_close(parts.statistics[name], values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-3, atol=1e-4)


def test_few_images_need_a_prior() -> None:
    model = network()
    for count in (1, FEWEST - 1):
        with pytest.raises(UserError, match=f"{count} image.* without a prior"):
            realign(model, images_of(count), prior=0)
    before = statistics_of(model)
    realign(model, images_of(1))
    assert not same(before, statistics_of(model))
    for name, value in statistics_of(model).items():
        torch.testing.assert_close(value, before[name], rtol=0.02, atol=0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_no_numbers_leave_the_network_as_it_was(value: float) -> None:
    model, images = network(), images_of(8)
    images[3, 0, 0, 0] = value
    before = statistics_of(model)
    with pytest.raises(UserError, match="not finite"):
        realign(model, images, prior=0)
    assert same(before, statistics_of(model))


def test_a_network_without_statistics_is_refused() -> None:
    with pytest.raises(UserError, match="no running statistics"):
        realign(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), images_of(8))


def test_statistics_of_quantizers_that_no_batchnorm_precedes_are_moved_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    model = calibrate(quantize_model(model, bitW=4, abitW=4, all_convs=True), [images_of(4, 0, 1)])
    realign(model, images_of(8, 4.0), prior=0)
    moved = layers_with_statistics(model)
    assert moved
    for name, x in inputs_of(model, images_of(8, 4.0)).items():
        assert moved[name].running_mean.item() == pytest.approx(x.double().mean().item(), rel=1e-4, abs=1e-4)
        assert moved[name].running_var.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_pooled_statistics_are_those_of_all_pixels_together(count: int, seed: int) -> None:
    x = torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 50
    found = pooled(*of_images(x, nn.BatchNorm2d(3)))
    var, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.var, var, rtol=1e-4, atol=0)


@given(st.floats(-100, 100), st.floats(1e-3, 1e3), st.integers(1, 1000), st.floats(1e-3, 1e6), st.floats(1.001, 1000))
def test_a_share_lies_between_and_falls_with_the_prior(
    mean: float, var: float, count: int, prior: float, factor: float
) -> None:
    moments = Moments(*(torch.tensor([value], dtype=torch.float64) for value in (mean, var, 0.01, 0.01)))
    norm = nn.BatchNorm2d(1)
    less, more = share(moments, norm, count, prior * factor), share(moments, norm, count, prior)
    assert 0 <= less <= more <= 1
    assert more <= count / (count + prior)
    assert share(moments, norm, count, 0) == 1


def test_images_like_the_sources_move_little_and_others_much() -> None:
    """Statistics of 256 images by which 64 like them, and 64 shifted ones, are judged."""
    norm, draws = nn.BatchNorm2d(1), torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=draws)
    alike = share(pooled(*of_images(x, norm)), norm, 64, 64)
    moved = share(pooled(*of_images(x + 1, norm)), norm, 64, 64)
    wider = share(pooled(*of_images(x * 3, norm)), norm, 64, 64)
    assert alike < 0.02
    assert min(moved, wider) > 0.4


def test_predictions_that_collapse_onto_a_class_are_warned_of() -> None:
    model = network()
    found = realign(model, images_of(16))
    logits = torch.zeros(16, 10)
    logits[torch.arange(16), torch.arange(16) % 10] = 1
    assert not type(found)(found.statistics, logits).warning()
    logits[:10, 7] = 2
    assert "% of the images are put into one class" in type(found)(found.statistics, logits).warning()
    assert not type(found)(found.statistics, logits[: FEWEST - 1]).warning()
