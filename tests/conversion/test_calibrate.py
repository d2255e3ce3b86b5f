"""Calibration and sensitivity: closed forms of the statistics, means of the steps, and nothing else touched."""

import pytest
import torch
from torch import Tensor, nn

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.conversion.sensitivity import sensitivity
from common.errors import UserError
from common.models import build_model
from common.quantizers.learned_scale import LearnedScale


def draw(count: int = 3, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 4, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 + 1)


def at(model: nn.Module, index: int) -> nn.Module:
    return model.get_submodule(str(index))


def network(method: str = "ours", bits: int = 4) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return quantize_model(model, method, bits, bits)


def test_statistics_are_means_over_the_batches_of_what_the_quantized_convolution_gives() -> None:
    model = network().eval()
    at(model, 1).running_mean.fill_(9.0)
    batches = draw()
    outputs = [at(model, 0)(batch) for batch in batches]
    assert calibrate(model, batches) is model
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(at(model, 1).running_mean, mean)
    torch.testing.assert_close(at(model, 1).running_var, var)
    assert at(model, 1).num_batches_tracked == len(batches)


@pytest.mark.parametrize("method", ["lsq", "llsq", "apot", "centroid"])
def test_steps_become_the_mean_of_their_initial_values(method: str) -> None:
    model = network(method)
    modules = dict(model.named_modules())
    step = modules.get("act_quantizers._2") or modules["3.input_quantizer"]
    batches = draw()
    assert not step.initialised
    relu = [torch.relu(nn.functional.batch_norm(at(model, 0)(x), None, None, training=True)) for x in batches]
    expected = torch.stack([step.initial_scale(y.detach()).float() for y in relu]).mean()
    calibrate(model, batches)
    torch.testing.assert_close(step.scale.detach(), expected)
    assert all(m.initialised for m in model.modules() if isinstance(m, LearnedScale))


def test_a_trained_step_and_everything_but_statistics_stay() -> None:
    model = network("lsq").train()
    at(model, 1).eval()
    calibrate(model, draw())
    with torch.no_grad():
        at(model, 3).input_quantizer.scale.mul_(1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    calibrate(model, [(batch, torch.zeros(4)) for batch in draw(seed=1)])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")}
    assert model.training
    assert not at(model, 1).training
    assert at(model, 1).momentum == 0.1


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 3, 12, 12)]])
def test_too_few_images_are_refused(batches: list[Tensor]) -> None:
    with pytest.raises(UserError, match="two images or more"):
        calibrate(network(), batches)


def test_a_failed_calibration_leaves_the_statistics() -> None:
    model = network()
    calibrate(model, draw())
    before = at(model, 1).running_mean.clone()
    with pytest.raises(RuntimeError):
        calibrate(model, [*draw(1), torch.zeros(2, 5, 12, 12)])
    assert torch.equal(at(model, 1).running_mean, before)


@pytest.mark.parametrize("method", ["ours", "lsq"])
def test_rows_are_one_quantizer_alone_and_all_but_it(method: str) -> None:
    model = network(method, 2)
    batches = draw(2)
    calibrate(model, batches)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = sensitivity(model, [(batch, torch.tensor([0, 1, 2, 0])) for batch in batches])
    assert result.float_network.error == 0
    assert result.quantized.error > 0
    activations = ["1", "4"] if method == "ours" else ["3"]
    names = {("0", "weights"), ("3", "weights"), *((n, "input" if n == "3" else "activations") for n in activations)}
    assert {(row.layer, row.what) for row in result.rows} == names
    assert all(row.alone.error > 0 for row in result.rows)
    assert all(
        effect.top1 is not None and 0 <= effect.top1 <= 100
        for row in result.rows
        for effect in (row.alone, row.without)
    )
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert len(result.table().splitlines()) == 4 + len(result.rows)


def test_activations_are_named_after_the_layer_that_they_come_from() -> None:
    block = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()]
    names = [(row.layer, row.what) for row in sensitivity(quantize_model(nn.Sequential(*block)), draw(1)).rows]
    assert names == [("0", "weights"), ("1", "activations")]
    shared = quantize_model(nn.Sequential(*block, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), block[2]), "uniform")
    assert [row.layer for row in sensitivity(shared, draw(1)).rows if row.what == "activations"] == ["_2", "_2_1"]


def test_with_one_quantizer_alone_is_all_and_without_it_is_float() -> None:
    torch.manual_seed(0)
    model = quantize_model(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), "uniform", 2, 32)
    result = sensitivity(model, draw(1))
    (row,) = result.rows
    assert row.alone == result.quantized
    assert row.without == result.float_network
    assert row.alone.top1 is None


def test_sensitivity_serves_networks_of_the_tasks_with_further_arguments() -> None:
    model = build_model("MNISTmodel_quant", bitW=4, abitW=4, img_size=16)
    result = sensitivity(model, [torch.randn(4, 3, 16, 16)], 0.0)
    assert {row.layer for row in result.rows} == {"feature.0", "feature.2", "feature.5", "feature.7"}


def test_a_float_network_and_missing_steps_are_refused() -> None:
    with pytest.raises(UserError, match="no quantizer to measure"):
        sensitivity(nn.Linear(3, 3), draw(1))
    with pytest.raises(UserError, match=r"3 has no value yet; calibrate"):
        sensitivity(network("lsq"), draw(1))
