"""A float network becomes the quantized one of its scheme: the same function at 32 bits, levels below, names kept."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import LeftFloat, left_float, quantize_model
from common.errors import UserError
from common.measure.effective_bits import measure
from common.models import build_model
from common.models.resnet50 import Bottleneck
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import WeightQuantizer
from common.quantizers.layers import QuantConv2d
from common.quantizers.learned_scale import scales_from_first_batch
from tests.conftest import fill_by_name

TORCHVISION = ("resnet18", "mobilenet_v2", "vgg11_bn", "densenet121")


def images(batch: int = 2, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def classifier(name: str) -> nn.Module:
    """Of torchvision, in evaluation mode, random; VGG without its 120 million float weights."""
    from common.vision import models

    with torch.device("meta"):
        model = models.get_model(name, weights=None, num_classes=5)
        if name.startswith("vgg"):
            model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 5)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.zero_()
    return model.eval()


def unwarned(model: nn.Module, *arguments: object, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return quantize_model(model, *arguments, **options)


def conv_bn(*channels: int, **options: object) -> list[nn.Module]:
    return [nn.Conv2d(*channels, 3, padding=1, **options), nn.BatchNorm2d(channels[1])]


class Residual(nn.Module):
    """One ReLU module for both places, a functional one, and dropout by self.training, as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(3, 8)
        self.conv2, self.bn2 = conv_bn(8, 8, groups=4, bias=False)
        self.conv3, self.bn3 = conv_bn(8, 8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = F.dropout(F.relu(self.bn2(self.conv2(x))), 0.5, self.training)
        x = self.relu(self.bn3(self.conv3(out)) + x)
        return self.head(x).mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_keeps_its_function_at_32_bits_and_has_levels_at_4(name: str) -> None:
    model = classifier(name)
    x = images(1)
    same = unwarned(model, bitW=32, abitW=32)
    assert torch.equal(same(x), model(x))
    assert not any(isinstance(module, QuantConv2d) for module in same.modules())
    network = unwarned(model, "ours", bitW=4, abitW=3, act_range=1.5)
    assert network.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in network.state_dict().items())
    levels = measure(network, x)
    assert len(levels) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert all(2 <= layer.weight_levels <= 16 for layer in levels)
    assert levels[0].input_levels is None or levels[0].input_levels > 1000, "the image is float"
    if name == "vgg11_bn":  # no sums, no average pooling: at most the levels behind a ReLU
        assert max(layer.input_levels for layer in levels[1:]) <= 2**2 + 1
    assert all(layer.input_levels is not None for layer in levels[1:])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "method"),
    [*(("resnet20_quant", name) for name in METHODS), *(("densenet_40_quant", m) for m in ("ours", "lsq"))],
)
def test_our_own_float_network_becomes_our_own_quantized_one(name: str, method: str) -> None:
    model = fill_by_name(build_model(name)).eval()
    ours = build_model(name, method, bitW=4, abitW=4).eval()
    ours.load_state_dict(model.state_dict(), strict=False)
    for module in ours.modules():
        if isinstance(module, QuantConv2d) and isinstance(module.weight_quantizer, WeightQuantizer):
            module.weight_quantizer.initialise(module.weight)
    network = unwarned(model, method, bitW=4, abitW=4)
    with scales_from_first_batch(network), scales_from_first_batch(ours):
        assert torch.equal(network(images()), ours(images()))
    assert not torch.equal(network(images()), model(images()))


def test_a_bottleneck_is_that_with_a_quantized_shortcut() -> None:
    model = fill_by_name(Bottleneck(3, 8, 2, make_scheme(), project=True, quant_shortcut=False)).eval()
    ours = Bottleneck(3, 8, 2, make_scheme("ours", bitW=4, abitW=4), project=True, quant_shortcut=True).eval()
    ours.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(unwarned(model, bitW=4, abitW=4)(images()), ours(images()))


@pytest.mark.parametrize(("method", "sites"), [("ours", 3), ("uniform", 3), ("lsq", 0)])
def test_shared_and_functional_relus_and_grouped_convolutions(method: str, sites: int) -> None:
    model = Residual().eval()
    with pytest.warns(LeftFloat, match=r"left float: head \(no BatchNorm behind it\)$"):
        network = quantize_model(model, method, bitW=3, abitW=2)
    assert left_float(network) == {"head": "no BatchNorm behind it"}
    assert len(getattr(network, "act_quantizers", nn.Module())._modules) == sites
    assert type(network.head) is nn.Conv2d
    assert network.conv2.groups == 4
    with scales_from_first_batch(network):
        levels = {layer.layer: layer for layer in measure(network, images())}
    assert all(levels[name].weight_levels <= 8 for name in ("conv1", "conv2", "conv3"))
    assert all(levels[name].input_levels <= 4 for name in ("conv2", "conv3"))


def test_dropout_follows_the_mode_of_the_converted_network() -> None:
    with pytest.warns(LeftFloat):
        network = quantize_model(Residual().eval(), bitW=4)
    x = images()
    assert not network.training
    assert torch.equal(network(x), network(x))
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(network(x), network(x))


def test_a_copy_by_default_and_shared_parameters_inplace() -> None:
    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = quantize_model(model)
    with torch.no_grad():
        copied.get_submodule("0").weight.add_(1)
        copied(images())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shared = quantize_model(model, inplace=True)
    assert shared.get_submodule("0").weight is model[0].weight
    assert type(model[0]) is nn.Conv2d


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU())
    model[1].eval()
    model[0].weight.requires_grad_(False)
    network = quantize_model(model)
    assert network.training
    assert not network.get_submodule("1").training
    assert not network.get_submodule("0").weight.requires_grad


def test_inputs_that_can_be_negative_stay_float_and_are_named() -> None:
    """A linear bottleneck: two convolutions with a BatchNorm and no ReLU between them."""
    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU6(), *conv_bn(8, 8), *conv_bn(8, 8), nn.ReLU6())
    with pytest.warns(LeftFloat):
        network = quantize_model(model, "lsq")
    assert left_float(network) == {"5": "its input: can be negative, lsq has no codes for that"}
    assert type(network.get_submodule("5").input_quantizer) is nn.Identity
    assert type(network.get_submodule("3").input_quantizer) is not nn.Identity
    assert left_float(unwarned(model, "ours")) == {}
    with pytest.warns(LeftFloat):
        assert left_float(quantize_model(model, "uniform")) == {"5": "its input: uniform places no quantizer behind _4"}


def test_what_stays_float_is_named_with_its_reason() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2 + F.conv2d(x, self.weight)

    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), Own(8, 8, 1), nn.BatchNorm2d(8))
    model.append(nn.ConvTranspose2d(8, 8, 2))
    with pytest.warns(LeftFloat):
        network = quantize_model(model)
    assert left_float(network) == {"3": "no BatchNorm behind it", "5": "a Own", "7": "a ConvTranspose2d"}


def test_squeeze_and_excitation_stays_float() -> None:
    with pytest.warns(LeftFloat, match="fc1"):
        network = quantize_model(classifier("mobilenet_v3_small"))
    without = {name for name, reason in left_float(network).items() if reason.startswith("no BatchNorm")}
    assert without == {name for name, _ in network.named_modules() if name.endswith((".fc1", ".fc2"))}


class Branching(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Auxiliary(nn.Sequential):
    def forward(self, x: Tensor) -> object:
        return (super().forward(x), x) if self.training else super().forward(x)


def test_leaves_are_called_as_they_are() -> None:
    model = nn.Sequential(*conv_bn(3, 8), Branching(nn.ReLU()))
    with pytest.raises(UserError, match=r"leaves="):
        quantize_model(model)
    network = quantize_model(model, bitW=2, leaves=(Branching,)).eval()
    assert network(images()).shape == (2, 8, 32, 32)
    assert network.get_submodule("0").weight_quantizer.bits == 2


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (lambda: Branching(*conv_bn(3, 8)), {}, "^Branching: torch.fx cannot trace its forward"),
        (lambda: Auxiliary(*conv_bn(3, 8)), {}, "^Auxiliary: .* training than in evaluation"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
            {},
            r"nothing to quantize.*0 \(no BatchNorm behind it\)",
        ),
        (lambda: nn.Linear(3, 3), {}, "no convolution"),
        (lambda: quantize_model(nn.Sequential(*conv_bn(3, 8))), {}, "quantized already"),
        (lambda: "resnet18", {}, "expected a torch module, not str"),
        (lambda: nn.Sequential(*conv_bn(3, 8)), {"method": "best"}, "--method best"),
        (lambda: nn.Sequential(*conv_bn(3, 8)), {"bitW": 9}, "--bitW 9"),
        (lambda: nn.Sequential(*conv_bn(3, 8)), {"bits": 4}, "unknown option bits"),
    ],
)
def test_refusals_are_one_line(make: object, options: dict, text: str) -> None:
    model = make()
    with pytest.raises(UserError, match=text) as error:
        quantize_model(model, **options)
    assert "\n" not in str(error.value)


def test_a_traced_model_keeps_its_mode_even_when_refused() -> None:
    model = Branching(*conv_bn(3, 8)).train()
    model[1].eval()
    with pytest.raises(UserError):
        quantize_model(model, inplace=True)
    assert model.training
    assert not model[1].training


def test_torchvision_networks_have_a_name_of_their_own() -> None:
    network = build_model("torchvision:resnet18", "lsq", bitW=4, abitW=4, num_classes=7)
    assert set(classifier("resnet18").state_dict()) <= set(network.state_dict())
    assert network.fc.out_features == 7
    with pytest.raises(UserError, match=r"torchvision:resnet17: expected one of .*resnet18"):
        build_model("torchvision:resnet17")
