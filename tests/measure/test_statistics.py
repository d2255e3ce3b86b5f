"""Statistics of a cumulative pass: the closed form of the average, and nothing else touched."""

import pytest
import torch
from torch import Tensor, nn

from common.conversion import quantize_model
from common.measure.statistics import estimate_statistics, restore_statistics, statistics_of
from common.quantizers.alignq import StandardAlignAct


def draw(*sizes: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 8, 8, generator=draws) * 2 + index for index, size in enumerate(sizes)]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)]
    return quantize_model(nn.Sequential(*layers), "ours", 4, 4)


def first(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model.get_submodule("0"), model.get_submodule("1")


def test_a_statistic_is_its_mean_over_the_images_of_batches_of_any_size() -> None:
    model, batches = network(), draw(8, 8, 3)
    conv, norm = first(model)
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(7.0)
    outputs = [conv(batch).double() for batch in batches]
    mean = sum(len(y) * y.mean((0, 2, 3)) for y in outputs) / 19
    var = sum(len(y) * y.var((0, 2, 3)) for y in outputs) / 19
    estimate_statistics(model, iter(batches))
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("windows", [1, 4])
def test_a_quantizer_that_standardises_counts_every_image_once_too(windows: int) -> None:
    class Windows(nn.Module):
        """What shows its layer more rows than there are images, such as a Swin."""

        def __init__(self) -> None:
            super().__init__()
            self.act = StandardAlignAct(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x.reshape(len(x) * windows, -1))

    model, batches = Windows(), draw(8, 3, 5, 1)
    estimate_statistics(model, batches)
    mean = sum(len(x) * x.double().mean() for x in batches) / 17
    var = sum(len(x) * x.double().var(correction=0) for x in batches) / 17
    torch.testing.assert_close(model.act.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.act.running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert model.act.averages_first
    assert model.act.momentum == 0.1


def test_a_layer_that_sees_another_number_of_rows_than_images_weighs_by_images() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = StandardAlignAct(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x.flatten(1).T)

    model, batches = TokensFirst(), draw(6, 2)
    estimate_statistics(model, batches)
    mean = (6 * batches[0].mean() + 2 * batches[1].mean()) / 8
    torch.testing.assert_close(model.act.running_mean, mean, rtol=1e-5, atol=1e-6)


def test_restored_statistics_of_a_quantizer_without_any_are_none() -> None:
    model = StandardAlignAct(4).eval()
    before = statistics_of(model)
    estimate_statistics(model, draw(4))
    assert model.initialised
    restore_statistics(before)
    assert not model.initialised


def test_batches_of_one_size_give_what_momentum_none_gives_to_the_last_bit() -> None:
    model, batches = network(), draw(4, 4, 4)
    estimate_statistics(model, batches)
    ours = statistics_of(model)
    for norm in ours:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model.get_submodule("3").eval()
    for batch in batches:
        model(batch)
    assert all(torch.equal(a, b) for norm, values in ours.items() for a, b in zip(values, norm.buffers(), strict=True))


def test_a_norm_that_is_used_twice_averages_both_uses() -> None:
    norm = nn.BatchNorm2d(3)
    one, other = draw(4, 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(other)

    estimate_statistics(Twice(), [one])
    torch.testing.assert_close(norm.running_mean, torch.cat([one, other]).mean((0, 2, 3)))


def test_statistics_alone_change_and_what_is_infinite_is_forgotten() -> None:
    model = network().train()
    first(model)[1].eval().running_var.fill_(float("inf"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    estimate_statistics(model, draw(4))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{i}.{what}" for i in (1, 5) for what in ("running_mean", "running_var", "num_batches_tracked")}
    assert [module.training for module in model.modules()] == modes
    assert first(model)[1].momentum == 0.1
    assert first(model)[1].running_var.isfinite().all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_norm_that_no_image_reaches_keeps_its_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    for norm in model:
        norm.running_mean.fill_(2.0)
    estimate_statistics(model, draw(4), forward=model[0])
    assert model[1].running_mean.tolist() == [2.0] * 3
    assert 2.0 not in model[0].running_mean.tolist()


def test_a_pass_that_fails_leaves_the_statistics() -> None:
    model = network()
    estimate_statistics(model, draw(4))
    before = first(model)[1].running_mean.clone()
    with pytest.raises(RuntimeError):
        estimate_statistics(model, [*draw(2), torch.zeros(2, 5, 8, 8)])
    assert torch.equal(first(model)[1].running_mean, before)
