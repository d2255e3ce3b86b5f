"""ONNX for networks of others: attention, gates, depthwise convolutions, LayerNorm, at any batch size, or one clear line."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.deploy.onnx.export import export_onnx, onnx_model, open_session, read_onnx
from common.deploy.onnx.operators import OPERATORS
from common.deploy.onnx.operators.rules import plain
from common.deploy.openvino import OpenVinoLogits, read_model
from common.errors import UserError
from common.measure.parity import codes_alone, compare_onnx, references, total
from common.vision import models

onnx = pytest.importorskip("onnx", reason="the deploy extra is not installed")
pytest.importorskip("onnxruntime", reason="the deploy extra is not installed")
SHAPE = (3, 32, 32)


def transformer() -> nn.Module:
    vit = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(vit.heads[-1].weight)
    return vit


def convnext() -> nn.Module:
    blocks = [models.convnext.CNBlockConfig(16, 32, 2), models.convnext.CNBlockConfig(32, None, 1)]
    return models.ConvNeXt(blocks, stochastic_depth_prob=0.5, layer_scale=1.0, num_classes=5)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention and LayerNorm": transformer,
    "GELU, depthwise convolutions and stochastic depth": convnext,
    "Hardswish and squeeze and excitation": lambda: models.mobilenet_v3_small(num_classes=5),
    "shuffled channels": lambda: models.shufflenet_v2_x0_5(num_classes=5),
}


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, bits: int, abits: int, method: str = "ours") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = quantize_model(model, method, bits, abits, linear=True, all_convs=True)
    return calibrate(network, [images()]).eval()


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    session = open_session(onnx_model(network, SHAPE, {}).SerializeToString(), threads=1)
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_are_the_networks_at_any_batch_size(name: str) -> None:
    """With float activations, so that no code can fall to the other side of a threshold."""
    torch.manual_seed(0)
    network = quantized(NETWORKS[name](), 4, 32)
    content = onnx_model(network, SHAPE, {}).SerializeToString()
    session = open_session(content, threads=1)
    for count in (1, 5):
        expected = network(images(count))
        (found,) = session.run(None, {"images": images(count).numpy()})
        assert expected.std() > 1e-3
        assert (torch.from_numpy(found) - expected).abs().max() < 1e-3 * expected.std()


@pytest.mark.parametrize(("name", "method"), zip(NETWORKS, ("ours", "uniform", "lsq", "ours"), strict=True))
@torch.no_grad()
def test_every_layer_given_the_same_codes_gives_the_same(name: str, method: str) -> None:
    torch.manual_seed(0)
    network, x = quantized(NETWORKS[name](), 4, 4, method), images(2)
    row = total("ONNX", compare_onnx(network, onnx_model(network, SHAPE, {}), x, codes_alone(network, x)))
    assert row.codes > 10_000
    assert row.different <= 1e-4 * row.codes


@torch.no_grad()
def test_logits_of_mobilenet_at_8_bits_differ_because_sums_lie_on_thresholds() -> None:
    """Not by any layer: each, given the codes of torch, gives torch's own, but where float32 rounding decides."""
    torch.manual_seed(0)
    network, x = quantized(models.mobilenet_v2(num_classes=10), 8, 8), images(4)
    row = total("ONNX", compare_onnx(network, onnx_model(network, SHAPE, {}), x, references(network, x)))
    assert row.codes > 400_000
    assert row.unexplained == 0
    assert row.distance < 1e-3


class Works(nn.Module):
    """A convolution, and behind it a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function, self.last = nn.Conv2d(3, 4, 3, padding=1), function, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.conv(x)).flatten(1))


def overwritten(x: Tensor) -> Tensor:
    part = x[:, :2]
    part.mul_(2)
    return x


def constant_overwritten(x: Tensor) -> Tensor:
    shift = torch.zeros(4, 1, 1)
    moved = x + shift
    return moved * shift.fill_(2)


def places(x: Tensor) -> Tensor:
    """Alike for all images here, and for no others."""
    values, where = F.max_pool2d(x[:1] * 0, 2, return_indices=True)
    return values + where / 2


KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish in place": lambda x: F.hardswish(x, inplace=True),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "flatten of some dimensions": lambda x: x.flatten(2, 3).softmax(-1),
    "adaptive pooling": lambda x: F.adaptive_avg_pool2d(x, (5, 7)),
    "mean pooling, rounded up": lambda x: F.avg_pool2d(x, 5, 4, 2, ceil_mode=True),
    "mean pooling, rounded up, of what is there": lambda x: F.avg_pool2d(x, 3, 2, 1, True, count_include_pad=False),
    "mean pooling, rounded up, by a divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, True, divisor_override=5),
    "maxima, rounded up": lambda x: F.max_pool2d(F.max_pool2d(x, 3, 2, ceil_mode=True), 2, 3, 1, ceil_mode=True),
    "padding, as an even kernel does": lambda x: torch.constant_pad_nd(x, (0, 1, 0, 1), 0.5),
    "padding": lambda x: F.pad(F.pad(x, (1, 2, 0, 1)), (2, 2, 0, 1), mode="reflect"),
    "resizing": lambda x: F.interpolate(x, scale_factor=2),
    "resizing to odd sizes": lambda x: F.interpolate(F.interpolate(x, (45, 7)), scale_factor=(1.7, 0.9)),
    "resizing, bilinear": lambda x: F.interpolate(
        F.interpolate(x, (45, 24), mode="bilinear"), scale_factor=2, mode="bilinear", align_corners=True
    ),
    "resizing, bilinear, by a scale": lambda x: F.interpolate(x[..., :13], scale_factor=1.7, mode="bilinear"),
    "group norm": lambda x: F.group_norm(x, 2),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "roll": lambda x: torch.roll(x, (1, -2), (2, 3)),
    "chunks": lambda x: torch.stack([part.sigmoid() for part in x.chunk(2, 1)], 1),
    "a slope": lambda x: F.leaky_relu(x, 0.3) - F.elu(x) * F.softplus(x) / x.clamp(min=1),
    "a token for every image": lambda x: torch.cat([torch.ones(1, 1, 32).expand(len(x), -1, -1), x.mean(1)], 1),
    "a transposed convolution": lambda x: F.mish(
        F.conv_transpose2d(x, torch.ones(4, 3, 2, 2), stride=2, padding=1, output_padding=1)
    ),
    "a constant that is worked on in place": constant_overwritten,
    "whole numbers and truths": lambda x: x * torch.tensor(2) / torch.arange(1, 33) + x * torch.eye(32).bool(),
    "zeros of the same shape": lambda x: torch.cat([x, torch.zeros_like(x), x.new_ones(len(x), 1, 32, 32)], 1),
    "PReLU": lambda x: F.prelu(F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])).mean(1), torch.tensor([0.5])),
    "extremes of a dimension": lambda x: x.max(1, keepdim=True)[0] - x.min(dim=1)[0][:, None] * torch.max(x, -x),
    "a power": lambda x: (1 - x.pow(2)).exp().sqrt().rsqrt(),
    "a norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
}
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "an operator": (lambda x: x.cumsum(1), "the ONNX export does not know torch's cumsum"),
    "a path by values": (lambda x: x if x.mean() > 9 else -x, "does not know torch's gt"),
    "a number by batch": (lambda x: x * len(x), "2, a number that follows the size of the batch"),
    "an index by truths": (lambda x: x[:, torch.tensor([True, False, True, True])], "an index by truths has no form"),
    "places of maxima": (places, "does not know all that div is given"),
    "memory": (overwritten, "worked on in place under another name; a copy would do"),
}


def network_of(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    network = Works(function).eval()
    with torch.no_grad():
        network(images())
    return network


@pytest.mark.parametrize("name", KNOWN)
@torch.no_grad()
def test_functions_are_written_as_torch_computes_them(name: str) -> None:
    network = network_of(KNOWN[name])
    torch.testing.assert_close(logits_of(network, images(3)), network(images(3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in KNOWN if "rounded" in name or "resizing" in name])
@torch.no_grad()
def test_openvino_computes_the_same_where_engines_differ(name: str) -> None:
    pytest.importorskip("openvino", reason="the deploy extra is not installed")
    network = network_of(KNOWN[name])
    logits = OpenVinoLogits(read_model(onnx_model(network, SHAPE, {}).SerializeToString()))(images(3))
    torch.testing.assert_close(logits, network(images(3)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_one_line(name: str) -> None:
    function, why = REFUSED[name]
    with pytest.raises(UserError, match=why) as refusal:
        onnx_model(network_of(function), SHAPE, {})
    assert "\n" not in str(refusal.value)


def test_what_the_checker_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "relu", plain("Rely"))
    with pytest.raises(UserError, match=r"no form in ONNX here .*Rely") as refusal:
        onnx_model(network_of(torch.relu), SHAPE, {})
    assert "\n" not in str(refusal.value)


def test_images_that_the_network_does_not_take_are_one_line() -> None:
    with pytest.raises(UserError, match=r"the network fails on images of shape \(3, 4, 4\)"):
        onnx_model(network_of(lambda x: x), (3, 4, 4), {})


def test_paths_may_be_strings(tmp_path: Path) -> None:
    path = str(tmp_path / "network.onnx")
    export_onnx(network_of(lambda x: x), path, SHAPE)
    assert read_onnx(path)
