"""The networks: published names and counts, golden vectors, and what 32 bits and every method build."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.config.tasks import Task
from common.engine import program
from common.errors import UserError
from common.measure.effective_bits import distinct
from common.models import NETWORKS, build_model
from common.quantizers import METHODS
from common.quantizers.base import QuantAct, Quantizer, WeightQuantizer
from common.quantizers.layers import QuantConv2d
from common.quantizers.scheme import AFTER_RELU, Method
from tests.conftest import fill_by_name

COUNTS = {
    "resnet20_quant": (272_474, 128),
    "resnet56_quant": (855_770, 344),
    "densenet_40_quant": (1_059_298, 236),
    "MNISTmodel_quant": (206_752, 39),
    "resnet50_dann": (23_575_649, 322),
    "resnet50_dsan": (24_040_543, 322),
}
SAMPLE_KEYS = {
    "resnet20_quant": (
        "conv0.weight",
        "layers.3.skip_bn.running_mean",
        "layers.8.conv1.weight",
        "bn.bias",
        "logit.bias",
    ),
    "resnet56_quant": ("layers.9.skip_conv.weight", "layers.18.skip_conv.weight", "layers.26.bn1.weight"),
    "densenet_40_quant": ("conv1.weight", "dense3.11.conv1.weight", "trans2.bn1.running_var", "bn.weight", "fc.weight"),
    "MNISTmodel_quant": (
        "feature.0.bias",
        "feature.5.weight",
        "feature.6.weight",
        "classifier.6.weight",
        "discriminator.3.bias",
    ),
    "resnet50_dann": (
        "feature.layer1.0.downsample.1.weight",
        "class_classifier.c_fc3.weight",
        "domain_classifier.d_fc2.bias",
    ),
    "resnet50_dsan": ("feature_layers.layer4.2.conv3.weight", "bottle.weight", "cls_fc.bias"),
}


def inputs(name: str, batch: int = 2) -> tuple:
    size = {"MNISTmodel_quant": 28, "resnet50_dann": 32, "resnet50_dsan": 32}.get(name, 32)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return (x, 0.5) if name in ("MNISTmodel_quant", "resnet50_dann") else (x,)


def logits(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [32, 4])
def test_published_parameter_counts_and_names(name: str, bits: int) -> None:
    model = build_model(name, bitW=bits, abitW=bits)
    state = model.state_dict()
    assert (sum(p.numel() for p in model.parameters()), len(state)) == COUNTS[name]
    assert set(SAMPLE_KEYS[name]) <= set(state)


@pytest.mark.parametrize("bits", [32, 8, 4, 3, 2])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_resnet20(bits: int, mode: str, golden_models: dict[str, torch.Tensor]) -> None:
    model = fill_by_name(build_model("resnet20_quant", bitW=bits, abitW=bits)).train(mode == "train")
    x = torch.from_numpy(np.random.RandomState(7).standard_normal((8, 3, 32, 32)).astype(np.float32))
    output = model(x)
    _agrees(output, golden_models[f"resnet20_quant.b{bits}.{mode}"], bits)
    if bits == 32 and mode == "train":
        loss = nn.functional.cross_entropy(output, torch.arange(8))
        loss.backward()
        torch.testing.assert_close(loss, golden_models["resnet20_quant.b32.loss"], atol=1e-4, rtol=1e-4)
        for key, gradient in ((k, v.grad) for k, v in model.named_parameters()):
            expected = golden_models.get(f"resnet20_quant.b32.grad.{key}")
            if expected is not None:
                torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("bits", [32, 8, 4, 3, 2])
def test_golden_vgg2(bits: int, golden_models: dict[str, torch.Tensor]) -> None:
    model = fill_by_name(build_model("MNISTmodel_quant", bitW=bits, abitW=bits)).eval()
    x = torch.from_numpy(np.random.RandomState(8).standard_normal((8, 1, 28, 28)).astype(np.float32))
    for output, what in zip(model(x, 0.3), ("class", "domain"), strict=True):
        _agrees(output, golden_models[f"MNISTmodel_quant.b{bits}.eval.{what}"], bits)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_golden_resnet50(bits: int, golden_models: dict[str, torch.Tensor]) -> None:
    model = fill_by_name(build_model("resnet50_dann", bitW=bits, abitW=bits)).eval()
    x = torch.from_numpy(np.random.RandomState(9).standard_normal((4, 3, 64, 64)).astype(np.float32))
    for output, what in zip(model(x, 0.5), ("class", "domain"), strict=True):
        _agrees(output, golden_models[f"resnet50_dann.cdf.b{bits}.eval.{what}"], bits)
    if (
        bits == 32
    ):  # below, batch statistics of 4 samples amplify one flipped level: memory format alone moves it by half
        output = fill_by_name(model).train()(x, 0.5)[0]
        torch.testing.assert_close(output, golden_models["resnet50_dann.cdf.b32.train.class"], atol=2e-3, rtol=1e-3)


def _agrees(output: torch.Tensor, expected: torch.Tensor, bits: int) -> None:
    difference = (output - expected).norm() / expected.norm()
    if bits == 32:
        assert difference < 1e-5
    else:
        assert difference < 0.1
        assert np.corrcoef(output.detach().flatten(), expected.flatten())[0, 1] > 0.99


@pytest.mark.parametrize("name", NETWORKS)
def test_32_bits_is_the_float_network_for_every_method(name: str) -> None:
    layouts = set()
    for method in METHODS:
        model = build_model(name, method=method)
        assert not any(isinstance(module, QuantConv2d | Quantizer) for module in model.modules())
        layouts.add(str(model))
    assert len(layouts) == 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_every_network_and_reaches_every_parameter(name: str, method: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, method=method, bitW=4, abitW=4).train()
    outputs = model(*inputs(name, 3))
    sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []
    plain = set(build_model(name).state_dict())
    assert plain <= set(model.state_dict()), "names do not depend on the method"


@pytest.mark.parametrize("name", ["resnet20_quant", "MNISTmodel_quant"])
@pytest.mark.parametrize("method", METHODS)
def test_state_dict_round_trip_is_exact(name: str, method: str) -> None:
    torch.manual_seed(0)
    one, two = (build_model(name, method=method, bitW=4, abitW=4) for _ in range(2))
    one.train()(*inputs(name, 4))
    two.load_state_dict(one.state_dict())
    assert torch.equal(logits(one.eval()(*inputs(name))), logits(two.eval()(*inputs(name))))


def test_mixed_widths_quantize_one_side_only() -> None:
    weights_only = build_model("resnet20_quant", bitW=4, abitW=32)
    activations_only = build_model("resnet20_quant", bitW=32, abitW=4)
    assert isinstance(weights_only.before_relu, nn.Identity)
    assert isinstance(weights_only.conv0, QuantConv2d)
    assert type(activations_only.conv0) is nn.Conv2d
    assert isinstance(activations_only.before_relu, Quantizer)


def test_stage_align_at_32_bits_aligns_without_rounding() -> None:
    torch.manual_seed(0)
    plain = build_model("resnet20_quant").eval()
    fine = build_model("resnet20_quant", bitW=8, abitW=8).eval()
    aligned = build_model("resnet20_quant", stage="align").eval()
    for model in (fine, aligned):
        model.load_state_dict(plain.state_dict())
    (x,) = inputs("resnet20_quant")
    assert not torch.allclose(aligned(x), plain(x), atol=1e-2)
    assert (aligned(x) - fine(x)).norm() < 0.2 * aligned(x).norm()


def test_crp_sites_are_the_last_quantizer_of_each_block() -> None:
    counts = {
        "resnet20_quant": 9,
        "resnet56_quant": 27,
        "MNISTmodel_quant": 2,
        "resnet50_dann": 16,
        "resnet50_dsan": 16,
    }
    for name, count in counts.items():
        model = build_model(name, bitW=4, abitW=4)
        sites = model.crp_sites()
        assert len(sites) == count
        assert all(isinstance(site, Quantizer) and site is model.get_submodule(key) for key, site in sites.items())


def test_quant_shortcut_adds_the_four_downsample_quantizers() -> None:
    def count(**options: bool) -> int:
        model = build_model("resnet50_dann", bitW=4, abitW=4, **options)
        return sum(isinstance(m, Quantizer) for n, m in model.named_modules() if "weight_quantizer" not in n)

    assert count(quant_shortcut=True) == count() + 4 == 1 + 3 * 16 + 4


def test_vgg2_feature_size_follows_the_image_size() -> None:
    model = build_model("MNISTmodel_quant", img_size=32, bitW=4, abitW=4)
    assert model(torch.randn(2, 1, 32, 32), 0.1)[0].shape == (2, 10)
    assert model.classifier[0].in_features == 48 * 5 * 5
    with pytest.raises(UserError, match="img_size 12"):
        build_model("MNISTmodel_quant", img_size=12)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="resnet20_quant"):
        build_model("resnet18")
    with pytest.raises(UserError, match=r"--method lsqq.*lsq"):
        build_model("resnet20_quant", method="lsqq", bitW=4, abitW=4)


class TernaryWeight(WeightQuantizer):
    """A ninth method, all of it: weights in {-m, 0, m}, activations left alone."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        m = w.detach().abs().mean()
        return w + (m * torch.round((w / m).clamp(-1, 1)) - w).detach()


class Untouched(QuantAct):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


TERNARY = Method(
    name="ternary",
    placement=AFTER_RELU,
    weight_bits=[2],
    act_bits=[2],
    weight=lambda bits, scheme: TernaryWeight(bits),
    activation=lambda bits, scheme: Untouched(bits),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_ninth_method_is_one_registry_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, TERNARY.name, TERNARY)
    model = fill_by_name(build_model(name, method="ternary", bitW=2, abitW=2)).train()
    outputs = model(*inputs(name, 3))
    sum(o.square().sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(distinct(m.weight_quantizer(m.weight)) == 3 for m in convolutions)
    assert all(m.weight.grad.abs().sum() > 0 for m in convolutions)


def test_a_ninth_method_trains_through_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, TERNARY.name, TERNARY)
    task = Task("resnet20", tmp_path, "resnet20_quant", stem="res20")
    words = ["--method", "ternary", "--bitW", "2", "--pretrained", "no", "--demo", "--data_dir", str(tmp_path)]
    words += [
        "--num_epochs",
        "1",
        "--train_batch_size",
        "720",
        "--eval_batch_size",
        "500",
        "--job_dir",
        str(tmp_path / "job"),
    ]
    layers = program.run(task, words)["layers"]
    assert {layer["weight_levels"] for layer in layers} == {3}
