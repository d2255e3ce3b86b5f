"""Offsets of running statistics: measured on the source's images, they make re-alignment by these change nothing."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.adaptation import offsets
from common.adaptation.moments import Moments
from common.adaptation.realign import realign
from common.deploy.alignment import base_digest
from common.deploy.packed import file
from common.deploy.restore import restore
from common.errors import UserError
from common.measure.statistics import norms
from common.runs import checkpoint
from tests.adaptation.test_realign import images_of, network, same, statistics_of
from tests.deploy.test_packed import network_of


def known(model: nn.Module, images: Tensor) -> nn.Module:
    offsets.attach(model, offsets.measure(model, images))
    return model


@pytest.mark.parametrize("method", ["ours", "lsq", "centroid"])
@pytest.mark.parametrize("prior", [0.0, 64.0])
def test_the_sources_own_images_change_nothing(method: str, prior: float) -> None:
    images = images_of(40)
    model = known(network(method), images)
    before = statistics_of(model)
    realign(model, images, prior)
    for key, value in statistics_of(model).items():
        torch.testing.assert_close(value, before[key], rtol=2e-4, atol=2e-5)


def test_without_offsets_the_same_images_move_the_network() -> None:
    model, images = network(), images_of(40)
    before = statistics_of(model)
    realign(model, images, 0.0)
    assert not same(statistics_of(model), before)


def test_measuring_leaves_statistics_and_modes() -> None:
    model = network().train()
    next(iter(norms(model).values())).eval()
    before, modes = statistics_of(model), [module.training for module in model.modules()]
    offsets.measure(model, images_of(5))
    assert same(statistics_of(model), before)
    assert [module.training for module in model.modules()] == modes


def test_offsets_are_differences_and_quotients_of_what_the_layer_sees() -> None:
    """Closed form: a BatchNorm alone, of which the running variance is four times and the mean one more."""
    images = images_of(70)
    norm = nn.BatchNorm2d(3, eps=1e-20).eval()
    var, mean = torch.var_mean(images.double(), dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean + 1)
    norm.running_var.copy_(4 * var)
    found = offsets.measure(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)
    torch.testing.assert_close(found["0"], torch.tensor([[1.0] * 3, [4.0] * 3]), rtol=1e-4, atol=1e-5)


def test_a_shift_moves_as_far_as_the_images_do() -> None:
    """With offsets or without, images that are shifted by a constant shift the mean by it; the offset stays beside."""
    images = images_of(64)
    norm = nn.BatchNorm2d(3).eval()
    model = known(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()), images)
    realign(model, images * 3 + 5, 0.0)
    expected = norm.offsets[0].double() + (images.double() * 3 + 5).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, torch.full((3,), 9.0), rtol=1e-3, atol=0)


def test_moments_are_brought_to_what_training_makes_of_them() -> None:
    """Closed form: means are moved, variances stretched by the quotient, and what chance makes of these by its square."""
    norm = nn.BatchNorm2d(1, eps=1e-20)
    norm.offsets = torch.tensor([[3.0], [4.0]])
    seen = Moments(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 2.0, 0.5, 0.25)))
    found = offsets.as_in_training(seen, norm)
    assert [float(value) for value in (found.mean, found.var, found.mean_chance, found.var_chance)] == [4, 8, 0.5, 4]
    assert offsets.as_in_training(seen, nn.BatchNorm2d(1)) is seen


def test_checkpoint_and_packed_file_keep_them_and_are_realigned_alike(tmp_path: Path) -> None:
    model, description = network_of("resnet20_quant", method="ours", bitW=4, abitW=4)
    found = offsets.measure(model, images_of(16, shift=0, scale=1))
    config: dict[str, Any] = {**description.scheme, "model": description.model}
    checkpoint.save({"state_dict_t": model.state_dict(), "config": config, offsets.KEY: found}, tmp_path / "a.pt")
    restored, about, _ = restore(tmp_path / "a.pt")
    file.save(restored, about, tmp_path / "a.safetensors")
    packed, _ = file.load(tmp_path / "a.safetensors")
    plain, _, _ = restore(saved_without(tmp_path / "a.pt"))
    for one in (restored, packed):
        assert same(offsets.of(one), found)
    assert base_digest(restored) == base_digest(packed) == base_digest(plain), "an alignment file fits all three"
    logits = [realign(copy.deepcopy(one), images_of(16)).logits for one in (restored, packed, plain)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def saved_without(path: Path) -> Path:
    content = checkpoint.read(path)
    del content[offsets.KEY]
    checkpoint.save(content, path.with_name("b.pt"))
    return path.with_name("b.pt")


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: {"elsewhere": next(iter(found.values()))},
        lambda found: {name: value[:, :-1] for name, value in found.items()},
        lambda found: {name: value.double() for name, value in found.items()},
        lambda found: {name: value * torch.nan for name, value in found.items()},
        lambda found: {name: -value for name, value in found.items()},
        lambda found: {name: value.tolist() for name, value in found.items()},
        lambda found: list(found),
    ],
)
def test_offsets_of_another_network_are_one_line(damage: Any, tmp_path: Path) -> None:
    model, description = network_of("resnet20_quant", method="ours", bitW=4, abitW=4)
    config = {**description.scheme, "model": description.model}
    content = {"state_dict_t": model.state_dict(), "config": config}
    found = damage(offsets.measure(model, images_of(4)))
    checkpoint.save({**content, offsets.KEY: found}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="offsets of its statistics are not those of this network"):
        restore(tmp_path / "a.pt")


def test_a_packed_file_with_offsets_of_no_layer_is_one_line(tmp_path: Path) -> None:
    model, description = network_of("resnet20_quant", method="ours", bitW=4, abitW=4)
    found = offsets.measure(model, images_of(4))
    name = next(iter(found))
    norms(model)[name].offsets = -found[name]
    file.save(model, description, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="offsets"):
        file.load(tmp_path / "a.safetensors")
