"""Re-alignment: the statistics are those of the images, the prior is a prior, and chance, order and labels have no part."""

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.adaptation.moments import Moments, of_images, pooled
from common.adaptation.realign import AT_ONCE, FEWEST, HELD, realign, share
from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.errors import UserError
from common.measure.statistics import norms
from common.quantizers import METHODS
from common.quantizers.alignq import StandardAlignAct
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
        for name, norm in norms(model).items()
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
        norm = norms(model)[name]
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
        found = realign(model, images, prior=0)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
        assert changed == set(statistics_of(model)), method
        with torch.no_grad():
            torch.testing.assert_close(found.logits, model(images), rtol=1e-3, atol=1e-3)


def test_repetition_and_order_give_the_same_bits() -> None:
    images = images_of(20)
    found = [realign(network(), x, prior=16) for x in (images, images, images.flip(0), images[torch.randperm(20)])]
    assert all(same(found[0].statistics, other.statistics) for other in found[1:])
    assert torch.equal(found[0].logits, found[2].logits.flip(0))


@pytest.mark.parametrize("held", [0, 70 * 16 * 16 * 16 * 4 - 1])
def test_images_that_may_not_wait_give_the_same_layer_by_layer(held: int) -> None:
    """At any layer, or at those of 16 channels and 16 x 16 pixels."""
    whole, parts = (realign(network(bits=32), images_of(70), prior=16, held=most) for most in (HELD, held))
    for name, values in whole.statistics.items():
        torch.testing.assert_close(parts.statistics[name], values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-3, atol=1e-4)


def test_one_pass_reaches_each_layer_once_for_each_part() -> None:
    model = network()
    layers, calls = norms(model), []
    for name, norm in layers.items():
        norm.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, len(args[0]))))
    realign(model, images_of(2 * AT_ONCE + 1), prior=16)
    for name in layers:
        assert [count for one, count in calls if one == name] == [1, AT_ONCE, AT_ONCE, 1], "the first to find the way"


class Chooses(nn.Module):
    """What is dark goes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.dark, self.light = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.dark if x.mean() < 0 else self.light)(x).flatten(1)


def test_images_that_go_different_ways_are_one_line_and_nothing_stays() -> None:
    model, images = Chooses(), torch.cat((images_of(2 * AT_ONCE, shift=5), images_of(2 * AT_ONCE, shift=-5)))
    before, threads = statistics_of(model), threading.active_count()
    with pytest.raises(UserError, match="do not take the same way"):
        realign(model, images, prior=16)
    assert same(before, statistics_of(model))
    assert threading.active_count() == threads


def test_a_failure_within_the_network_is_its_own() -> None:
    model, images = network(), images_of(3 * AT_ONCE)
    before, threads = statistics_of(model), threading.active_count()
    handle = list(norms(model).values())[5].register_forward_pre_hook(lambda *_: 1 / 0)
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            realign(model, images, prior=16)
        handle.remove()
        handle = list(norms(model).values())[5].register_forward_pre_hook(interrupt)
    assert same(before, statistics_of(model))
    assert threading.active_count() == threads


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_few_images_need_a_prior() -> None:
    model = network()
    for count in (1, FEWEST - 1):
        with pytest.raises(UserError, match=f"{count} image.* without a prior"):
            realign(model, images_of(count), prior=0)
    before = statistics_of(model)
    realign(model, images_of(1), prior=128)
    assert not same(before, statistics_of(model))
    for name, value in statistics_of(model).items():
        torch.testing.assert_close(value, before[name], rtol=0.02, atol=0.2)


class Rows(nn.Module):
    """A layer with statistics behind what makes other rows of the images."""

    def __init__(self, norm: nn.Module, rows: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.rows = norm, rows

    def forward(self, x: Tensor) -> Tensor:
        self.norm(self.rows(x))
        return x.flatten(1)


def windows(x: Tensor) -> Tensor:
    """16 x 16 pixels in four windows of 8 x 8, those of an image one after another, as Swin has them."""
    return x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 8, 8)


@pytest.mark.parametrize("at_once", [AT_ONCE, 7])
@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: nn.BatchNorm2d(3), windows),
        (lambda: StandardAlignAct(4), windows),
        (lambda: StandardAlignAct(4), lambda x: x.flatten(2).permute(2, 0, 1)),
    ],
    ids=["BatchNorm, windows", "quantizer, windows", "quantizer, tokens before images"],
)
def test_a_layer_that_sees_windows_counts_images(
    make: Any, rows: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as one that sees whole images; by windows it would go further, and be surer of it."""
    monkeypatch.setattr("common.adaptation.realign.AT_ONCE", at_once)
    found = []
    for seen in (rows, lambda x: x):
        norm = make()
        if isinstance(norm, StandardAlignAct):
            norm.set_statistics(torch.zeros(()), torch.ones(()), batches=1)
        realign(Rows(norm, seen), images_of(20, 0.3, 1.1), prior=16)
        found.append(torch.stack((norm.running_mean, norm.running_var)))
    tolerance = 1e-5 if rows is windows else 1e-2  # tokens before images mix images: what chance makes is another
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=1e-5)


def test_rows_that_are_of_no_image_count_as_the_images_do() -> None:
    norm = nn.BatchNorm2d(3)
    realign(Rows(norm, lambda x: torch.cat((windows(x), windows(x)[:1]))), images_of(8, 100.0), prior=16)
    assert norm.running_mean.mean().item() == pytest.approx(100 * 8 / (8 + 16), rel=0.01), "8 images, not 33"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_no_numbers_leave_the_network_as_it_was(value: float) -> None:
    model, images = network(), images_of(8)
    images[3, 0, 0, 0] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match="not finite"):
        realign(model, images, prior=0)
    assert same(before, model.state_dict())


def test_a_refusal_half_way_leaves_quantizers_their_statistics_and_the_network_its_modes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    model = calibrate(quantize_model(model, bitW=4, abitW=4, all_convs=True), [images_of(4), images_of(6)]).train()
    images = images_of(8)
    images[3, 0, 0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    assert {int(value) for key, value in before.items() if key.endswith("num_batches_tracked")} == {2}
    with pytest.raises(UserError, match="not finite"):
        realign(model, images, prior=0)
    assert same(before, model.state_dict())
    assert all(module.training for module in model.modules())


def test_a_network_without_statistics_is_refused() -> None:
    with pytest.raises(UserError, match="no running statistics"):
        realign(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), images_of(8))


def test_statistics_of_quantizers_that_no_batchnorm_precedes_are_moved_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    model = calibrate(quantize_model(model, bitW=4, abitW=4, all_convs=True), [images_of(4, 0, 1)])
    realign(model, images_of(8, 4.0), prior=0)
    moved = norms(model)
    assert moved
    for name, x in inputs_of(model, images_of(8, 4.0)).items():
        assert moved[name].running_mean.item() == pytest.approx(x.double().mean().item(), rel=1e-4, abs=1e-4)
        assert moved[name].running_var.item() == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)


@given(st.integers(1, 30), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 20.0, 50.0, 1e4]))
def test_pooled_statistics_are_those_of_all_pixels_together(count: int, seed: int, offset: float) -> None:
    x = torch.randn(count, 3, 5, 4, generator=torch.Generator().manual_seed(seed)) * 3 + offset
    found = pooled(*of_images(x, nn.BatchNorm2d(3), count))
    var, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-6)
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
    alike = share(pooled(*of_images(x, norm, 64)), norm, 64, 64)
    moved = share(pooled(*of_images(x + 1, norm, 64)), norm, 64, 64)
    wider = share(pooled(*of_images(x * 3, norm, 64)), norm, 64, 64)
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
