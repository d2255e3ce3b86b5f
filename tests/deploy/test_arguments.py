"""Every form of a network computes what torch computes, or refuses in one line: no argument is passed over in silence."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.deploy.graph import trace
from common.deploy.integer.network import integer_network
from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.onnx.writer import NetworkWriter
from common.deploy.openvino import OpenVinoLogits, read_model
from common.deploy.program import exported_program
from common.errors import UserError
from common.measure.parity import quantized_values, references
from common.measure.rounding_error import bounded_positions
from common.quantizers.base import QuantAct

SIDE = 13
Middle = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions, and between them and at the end what is tried; its modules are in ``own``."""

    def __init__(self, middle: Middle, end: Middle, own: nn.Module, features: int = 6) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.own, self.middle, self.end = own, middle, end
        self.last = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.own, self.relu1(self.bn1(self.conv1(x))))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.last(self.end(self.own, x))


def call(own: nn.Module, x: Tensor) -> Tensor:
    return own(x)


def mean(own: nn.Module, x: Tensor) -> Tensor:
    return x.mean((2, 3))


def same(own: nn.Module, x: Tensor) -> Tensor:
    return x


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1, 6, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value


def overwritten(own: nn.Module, x: Tensor) -> Tensor:
    x += own(x)
    return x


def read_again(own: nn.Module, x: Tensor) -> Tensor:
    y = own(x)
    z = F.relu_(y)
    return z + y


POOLS: dict[str, nn.Module] = {
    f"{kind.__name__} {arguments}": kind(**arguments)
    for kind, several in {
        nn.AvgPool2d: [
            {"kernel_size": 2},
            {"kernel_size": 2, "stride": 3},
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
            {"kernel_size": 2, "ceil_mode": True},
            {"kernel_size": 2, "divisor_override": 3},
            {"kernel_size": (3, 2), "stride": (2, 1)},
        ],
        nn.MaxPool2d: [
            {"kernel_size": 3, "stride": 2, "padding": 1},
            {"kernel_size": 2, "ceil_mode": True},
            {"kernel_size": 3, "stride": 2, "dilation": 2},
            {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        ],
        nn.AdaptiveAvgPool2d: [{"output_size": 1}, {"output_size": 3}, {"output_size": (1, 2)}],
    }.items()
    for arguments in several
}
MIDDLES: dict[str, Middle] = {
    "F.avg_pool2d": lambda own, x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    "F.avg_pool2d with ceil_mode": lambda own, x: F.avg_pool2d(x, 2, None, 0, True),
    "F.avg_pool2d with divisor": lambda own, x: F.avg_pool2d(x, kernel_size=(2, 3), divisor_override=5),
    "F.max_pool2d": lambda own, x: F.max_pool2d(x, (2, 3), (1, 2), dilation=(1, 2)),
    "F.max_pool2d with ceil_mode": lambda own, x: F.max_pool2d(x, 3, 2, 0, 1, True),
    "torch.max_pool2d": lambda own, x: torch.max_pool2d(x, 3, 2, 1),
    "max_pool2d with indices": lambda own, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "mean kept": lambda own, x: x + x.mean(dim=(2, 3), keepdim=True),
    "mean of rows": lambda own, x: x + torch.mean(x, -1, True),
    "mean of all": lambda own, x: x + x.mean(),
    "x + x": lambda own, x: x + x,
    "relu of x + x": lambda own, x: F.relu(x + x),
    "add with alpha": lambda own, x: torch.add(x, x.relu(), alpha=2),
    "x.add": lambda own, x: x.add(F.max_pool2d(x, 3, 1, 1)),
    "x + 1.0": lambda own, x: x + 1.0,
    "0.5 + x": lambda own, x: 0.5 + x,
    "x * 2": lambda own, x: x * 2,
    "x += own": overwritten,
    "cat of sums": lambda own, x: torch.cat([x, x], dim=2),
    "cat of the batch": lambda own, x: torch.cat([x, x])[:2],
    "cat of the channels": lambda own, x: torch.cat([x[:, :3], x[:, 3:]], 1),
    "expand": lambda own, x: x.expand(-1, 6, -1, -1),
    "expand of a tuple": lambda own, x: x.mean((2, 3), True).expand((-1, -1, SIDE, SIDE)),
    "dropout": lambda own, x: F.dropout(x, 0.5, own.training),
    "dropout for ever": lambda own, x: F.dropout(x, 0.0),
    "relu6": lambda own, x: F.relu6(x),
    "sigmoid": lambda own, x: torch.sigmoid(x),
}
ENDS: dict[str, tuple[Middle, int]] = {
    "mean by name": (lambda own, x: x.mean(dim=(2, 3)), 6),
    "mean, negative": (lambda own, x: torch.mean(x, [-1, -2]), 6),
    "mean and flatten": (lambda own, x: x.mean((2, 3), keepdim=True).flatten(1), 6),
    "mean in two steps": (lambda own, x: x.mean(3).mean(2), 6),
    "mean over channels": (lambda own, x: x.mean(1).flatten(1), SIDE * SIDE),
    "pooled and indexed": (lambda own, x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], 6),
    "flatten all": (lambda own, x: x.flatten(1), 6 * SIDE * SIDE),
    "flatten by name": (lambda own, x: torch.flatten(x, start_dim=1, end_dim=-1), 6 * SIDE * SIDE),
    "flatten the last two": (lambda own, x: x.flatten(2).mean(-1), 6),
    "flatten to the third": (lambda own, x: x.flatten(1, 2).mean(-1), 6 * SIDE),
    "nn.Flatten": (call, 6 * SIDE * SIDE),
    "view": (lambda own, x: x.mean((2, 3)).view(-1, 6), 6),
}
CONVOLUTIONS: tuple[dict[str, Any], ...] = (
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": (0, 1), "dilation": 2, "groups": 2},
)


def block(*pools: nn.Module, **arguments: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 6, **arguments), *pools, nn.BatchNorm2d(6), nn.ReLU())


CASES: dict[str, Callable[[], Net]] = {
    **{
        f"{name} of sums": lambda pool=pool: Net(call, mean, block(pool, kernel_size=1)) for name, pool in POOLS.items()
    },
    **{name: lambda pool=pool: Net(call, mean, pool) for name, pool in POOLS.items()},
    **{name: lambda middle=middle: Net(middle, mean, nn.Dropout()) for name, middle in MIDDLES.items()},
    **{name: lambda end=end, n=n: Net(same, end, nn.Flatten(), n) for name, (end, n) in ENDS.items()},
    **{
        f"Conv2d {arguments}": lambda arguments=arguments: Net(call, mean, block(**arguments))
        for arguments in CONVOLUTIONS
    },
    "in place and read again": lambda: Net(read_again, mean, nn.BatchNorm2d(6)),
    "a parameter": lambda: Net(call, mean, Constant()),
    "a convolution twice": lambda: Net(lambda own, x: own(own(x)), mean, block(kernel_size=1, padding=1)),
    "a BatchNorm without statistics": lambda: Net(call, mean, nn.BatchNorm2d(6, track_running_stats=False)),
}


def network(name: str, bits: int, abits: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantize_model(CASES[name](), "ours", bits, abits)
    return calibrate(model, [x]).eval(), x[:2]


def onnx(model: nn.Module, x: Tensor, form: type[NetworkWriter] = NetworkWriter) -> Tensor:
    session = open_session(onnx_model(model, tuple(x.shape[1:]), {}, form).SerializeToString(), threads=1)
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


FORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "ONNX": onnx,
    "integer": lambda model, x: integer_network(model)(x),
    "ONNX int8": lambda model, x: onnx(model, x, IntegerWriter),
    "torch.export": lambda model, x: exported_program(model, tuple(x.shape[1:])).module()(x),
}


def result_or_refusal(compute: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return compute(*arguments)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_form_computes_the_network_or_refuses_it(form: str, name: str) -> None:
    """With float activations no sum can sit on a threshold; at two bits none of these images' does."""
    model, x = network(name, 2, 32 if form in ("ONNX", "torch.export") else 2)
    expected = model(x)
    assert expected.std() > 1e-3
    found = result_or_refusal(FORMS[form], model, x)
    if isinstance(found, str):
        assert "\n" not in found
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


KNOWN_ONNX = (
    *("AvgPool2d {'kernel_size': 3, 'stride': 2, 'padding': 1}", "F.max_pool2d", "mean kept", "x + x", "x + 1.0"),
    *("cat of sums", "mean by name", "mean and flatten", "nn.Flatten", "a convolution twice", "dropout"),
)
KNOWN_SUMS = (
    "AvgPool2d {'kernel_size': 2, 'stride': 3} of sums",
    "AvgPool2d {'kernel_size': (3, 2), 'stride': (2, 1)} of sums",
)
KNOWN_INTEGER = (
    *(
        "MaxPool2d {'kernel_size': 2, 'ceil_mode': True}",
        "relu of x + x",
        "mean, negative",
        "flatten by name",
        "dropout",
    ),
    *("Conv2d {'kernel_size': 1, 'padding': 1}", "a convolution twice"),
)


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *(("ONNX", name) for name in KNOWN_ONNX),
        *(("integer", name) for name in KNOWN_INTEGER),
        *(("ONNX int8", name) for name in (*KNOWN_ONNX, *KNOWN_INTEGER)),
    ],
)
@torch.no_grad()
def test_what_can_be_had_is_not_refused(form: str, name: str) -> None:
    model, x = network(name, 2, 2)
    FORMS[form](model, x)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_float32_stays_within_the_bound_or_there_is_none(name: str) -> None:
    model, x = network(name, 4, 4)
    source = trace(model)
    seen: dict[str, Tensor] = {}
    for layer_name, layer in source.named_modules():
        if isinstance(layer, QuantAct):
            layer.register_forward_pre_hook(
                lambda act, inputs, layer_name=layer_name: seen.update({layer_name: act.position(inputs[0])})
            )
    found = result_or_refusal(references, model, x)
    if isinstance(found, str):
        assert "\n" not in found
        return
    codes = {layer_name: one.codes for layer_name, one in found.items()}
    source(x)
    assert codes.keys() == quantized_values(source, x).keys()
    for layer_name, there in bounded_positions(source, x, codes).items():
        assert bool(((seen[layer_name] - there.value).abs() <= there.error).all()), layer_name


@pytest.mark.parametrize("name", ["Conv2d {'kernel_size': 1, 'padding': 1}", "mean by name", "x + x"])
@torch.no_grad()
def test_the_packed_state_computes_the_network(name: str, tmp_path: Path) -> None:
    model, x = network(name, 4, 4)
    packed.save_state(model, tmp_path / "state.safetensors")
    other, _ = network(name, 4, 4)
    assert torch.equal(packed.load_into(other, tmp_path / "state.safetensors")(x), model(x))


def test_sums_of_a_pooling_beyond_32_bits_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.ReLU())
    network = quantize_model(model, "ours", 4, 4)
    with pytest.raises(UserError, match=r"1: sums of up to .* do not fit 32 bits"):
        integer_network(network)


def test_openvino_reads_padding_that_wraps() -> None:
    model, x = network("Conv2d {'kernel_size': 3, 'padding': 1, 'padding_mode': 'circular'}", 4, 4)
    content = onnx_model(model, tuple(x.shape[1:]), {}, IntegerWriter).SerializeToString()
    torch.testing.assert_close(OpenVinoLogits(read_model(content))(x), model(x), rtol=1e-4, atol=1e-5)
