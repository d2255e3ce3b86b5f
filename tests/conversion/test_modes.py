"""Forwards that differ in training by dropout and stochastic depth alone become one graph that follows the mode."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import quantize_model
from common.conversion.modes import InTraining
from common.errors import UserError


def drop_connect(x: Tensor, p: float, training: bool) -> Tensor:
    """As in EfficientNets outside of torchvision."""
    if not training:
        return x
    mask = 1 - p
    mask = mask + torch.rand([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
    return x / (1 - p) * torch.floor(mask)


def drop_path(x: Tensor, p: float, training: bool) -> Tensor:
    """As in timm."""
    if p == 0.0 or not training:
        return x
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - p)
    mask.div_(1 - p)
    return x * mask


class Block(nn.Module):
    def __init__(self, drop) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), drop
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.bn(self.conv(x)), 0.5, self.training)
        x = F.relu(x + y)
        if self.training:
            x = F.dropout(x, 0.1)
        return self.again(x) + x  # what was dropped is read twice


class Network(nn.Sequential):
    def __init__(self, drop) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Block(drop), Block(drop))


def both(model: nn.Module, x: Tensor, **options: object) -> tuple[nn.Module, Tensor, Tensor]:
    """The converted network, its output and that of the model, from the same random numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = quantize_model(model, bitW=32, abitW=32, **options)
    for module in [*model.modules(), *network.modules()]:
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    return network, network(x), expected


@pytest.mark.parametrize("drop", [drop_connect, drop_path])
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_the_same_in_both_modes(drop: object, training: bool) -> None:
    torch.manual_seed(0)
    model, x = Network(drop).train(training), torch.randn(4, 3, 12, 12)
    network, found, expected = both(model, x)
    assert torch.equal(found, expected)
    assert sum(isinstance(module, InTraining) for module in network.modules()) == 4
    assert set(network.state_dict()) == set(model.state_dict())
    torch.manual_seed(2)
    network.train(not training)
    assert not torch.equal(network(x), found), "it follows the mode that it is put in"


def test_levels_pass_through_stochastic_depth() -> None:
    """In evaluation nothing is dropped, so what follows needs no quantizer of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = quantize_model(Network(drop_path), all_convs=True)
    assert type(network.get_submodule("4.conv").input_quantizer) is not nn.Identity, "behind a convolution of no norm"
    block = Block(drop_path)
    block.again = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    network = quantize_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), block), all_convs=True)
    assert type(network.get_submodule("2.again.0").input_quantizer) is nn.Identity


class Other(nn.Module):
    """What evaluation skips: of another tensor, with a parameter, or not at all."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.conv, self.bn, self.what = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), what

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if self.training and self.what == "of another tensor":
            y = y + x
        if self.training and self.what == "with a parameter":
            y = self.bn(y)
        if not self.training and self.what == "evaluation alone":
            y = y.softmax(1)
        return y


@pytest.mark.parametrize("what", ["of another tensor", "with a parameter", "evaluation alone"])
def test_other_differences_are_refused_in_one_line(what: str) -> None:
    with pytest.raises(UserError, match=r"training than in evaluation.*leaves=\(\.\.\.\)") as refusal:
        quantize_model(Other(what))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_timm_converts_and_computes_the_same(name: str) -> None:
    import common.vision  # noqa: F401  torchvision, which timm imports, beside any build of torch

    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=4, drop_path_rate=0.2), torch.randn(2, 3, 64, 64)
    x = F.interpolate(x, 224) if name.endswith("224") else x
    for mode in (True, False):
        network, found, expected = both(model.train(mode), x, linear=True, all_convs=True)
        assert torch.equal(found, expected)
        assert set(network.state_dict()) == set(model.state_dict())


def test_a_batch_norm_that_acts_is_quantized_before_its_relu() -> None:
    import common.vision  # noqa: F401

    layers = pytest.importorskip("timm.layers")
    block = [nn.Conv2d(3, 8, 3), layers.BatchNormAct2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    network = quantize_model(nn.Sequential(*block), bitW=4, abitW=2)
    steps = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    assert steps[:4] == ["0", "1", "act_quantizers._1", "1.drop"]
    assert steps[4:6] == ["1.act", "2"]
    assert type(nn.Sequential(*block)[1]).__name__ == "BatchNormAct2d"
