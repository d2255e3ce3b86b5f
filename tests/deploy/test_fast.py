"""The fast path: the trained network's codes, with bytes split and 8-bit weights too, through int8 convolutions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from common.deploy import packed
from common.deploy.description import describe
from common.deploy.files import open_file
from common.deploy.graph import ClassLogits
from common.deploy.integer import fast
from common.deploy.integer.fast import CompiledNetwork, fast_graph
from common.deploy.integer.fast_layers import Int8Layer, Levels, SumAndReLU
from common.errors import UserError
from common.measure.parity import compare_fast, references, total
from common.models import build_model
from common.quantizers.alignq import METHOD, AlignAct
from common.quantizers.scheme import Scheme
from tests.deploy.conftest import calibrated, images


def align(bits: int) -> AlignAct:
    return AlignAct(bits, Scheme(METHOD, bits, bits))


def int8_layer(bits: int, high: int) -> tuple[Int8Layer, torch.Tensor, torch.Tensor]:
    """A layer, inputs in 0..high, and its pre-activations in float64; one channel has scale zero."""
    torch.manual_seed(0)
    conv = build_model("resnet20_quant", bitW=bits, abitW=bits).layers[0].conv0
    scale, shift = torch.randn(16).double() * 1e-3, torch.randn(16).double()
    scale[3] = 0
    x = torch.randint(0, high + 1, (2, 16, 9, 9))
    sums = F.conv2d(x.double(), conv.weight_quantizer.integers(conv.weight)[0].double(), None, 1, 1)
    expected = sums * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    stored = x.to(torch.uint8 if high < 256 else torch.int32)
    return Int8Layer(conv, scale, shift, high, align(bits)), stored, expected


@pytest.mark.parametrize(("bits", "high"), [(4, 60), (8, 255), (8, 1020), (2, 9)])
@torch.no_grad()
def test_the_int8_convolution_is_the_exact_sum(bits: int, high: int) -> None:
    layer, x, expected = int8_layer(bits, high)
    found = layer.pre_activation(x).double()
    torch.testing.assert_close(found, expected, atol=1e-3 if bits == 8 else 1e-5, rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@torch.no_grad()
def test_levels_are_those_of_the_activation_quantizer(bits: int) -> None:
    u = torch.cat((torch.linspace(-4, 4, 1001), torch.tensor([0.0, -0.0, 50.0, -50.0])))
    act = align(bits)
    assert act.grid is not None
    expected = 2 * act.grid.codes(act(u)) - (2**bits - 1)
    torch.testing.assert_close(Levels(act)(u), expected, rtol=0, atol=0)


@torch.no_grad()
def test_logits_are_the_trained_networks() -> None:
    for name, bits in (("MNISTmodel_quant", 4), ("resnet20_quant", 8)):
        model, x = calibrated(name, bits), images(name)
        torch.testing.assert_close(fast_graph(model)(x), ClassLogits(model)(x), atol=2e-2, rtol=1e-2)


@torch.no_grad()
def test_compiled_it_multiplies_in_int8() -> None:
    layer, x, _ = int8_layer(4, 60)
    net = nn.Sequential(SumAndReLU(60), layer, SumAndReLU(15))  # a float image comes first, as in a network
    before = counters["inductor"]["qconv_weight_prepack_matcher_count"]
    compiled = CompiledNetwork(net, tuple(x.shape))
    assert counters["inductor"]["qconv_weight_prepack_matcher_count"] == before + 1
    assert torch.equal(compiled(x.float()), net(x.float()))
    with pytest.raises(ValueError, match="made for images"):
        compiled(x[:1].float())


def test_compiled_layers_give_the_codes_of_the_trained_network() -> None:
    model, x = calibrated("MNISTmodel_quant", 4), images("MNISTmodel_quant")
    expected = references(model, x)
    before = counters["inductor"]["qconv_weight_prepack_matcher_count"]
    rows = compare_fast(model, x, expected)
    assert counters["inductor"]["qconv_weight_prepack_matcher_count"] == before + 1, "the second convolution"
    assert [row.layer for row in rows] == list(expected)
    whole = total("all", rows)
    assert whole.different <= 1e-4 * whole.codes
    assert whole.unexplained == 0


def test_a_file_opened_fast_fills_small_batches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = describe({"model": "MNISTmodel_quant", "bitW": 4, "abitW": 4}, 10)
    torch.manual_seed(0)
    network = description.build()
    packed.save(network, description, tmp_path / "digits.safetensors")
    shapes = []

    class Uncompiled(nn.Module):
        def __init__(self, graph: nn.Module, image_shape: tuple[int, ...]) -> None:
            super().__init__()
            self.graph, self.image_shape = graph, image_shape

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(x.shape))
            return self.graph(x)

    monkeypatch.setattr(fast, "CompiledNetwork", Uncompiled)
    file = open_file(tmp_path / "digits.safetensors", fast=True)
    x = torch.randn(5, 3, 28, 28)
    assert "fast" in file.line()
    whole, part = file.logits(x), file.logits(x[:2])
    assert shapes == [(5, 3, 28, 28)] * 2
    torch.testing.assert_close(part, whole[:2])
    torch.testing.assert_close(whole, ClassLogits(network)(x), atol=2e-2, rtol=1e-2)


def test_an_onnx_file_has_no_fast_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fast compiles a checkpoint or a packed file"):
        open_file(tmp_path / "network.onnx", fast=True)


def test_quantizers_that_share_a_convolution_are_refused() -> None:
    with pytest.raises(UserError, match="convolution of its own"):
        fast_graph(calibrated("densenet_40_quant", 4))
