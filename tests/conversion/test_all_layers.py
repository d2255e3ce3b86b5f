"""linear=True and all_convs=True: every layer is quantized on the scale of the float one, calibrated, trained, packed."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import LeftFloat, left_float, quantize_model
from common.conversion.attention import SelfAttention
from common.conversion.calibrate import calibrate
from common.conversion.sensitivity import sensitivity
from common.deploy import packed
from common.deploy.integer.network import integer_network
from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.program import exported_program
from common.errors import UserError
from common.measure.coverage import coverage
from common.measure.effective_bits import measure
from common.quantizers import METHODS
from common.quantizers.base import QuantAct
from common.quantizers.layers import QuantConv2d, QuantLayer, QuantLinear
from common.quantizers.standardised import StandardisedAct
from common.runs.checkpoint import load_weights

ALL = {"linear": True, "all_convs": True}


class Own(nn.Module):
    """What users build: a depthwise and biased convolutions without BatchNorm, a residual, a head of Linear layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(width, 8 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(8 * width, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer of one block, as torch writes it."""

    def __init__(self, mask: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 24) * 0.02)
        self.norm, self.attention = nn.LayerNorm(24), nn.MultiheadAttention(24, 4, dropout=0.1, batch_first=True)
        self.head = nn.Linear(24, 4)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        normed = self.norm(x)
        extra = {"attn_mask": torch.zeros(16, 16)} if self.mask else {}
        y, _ = self.attention(normed, normed, normed, need_weights=False, **extra)
        return self.head((x + y).mean(1))


def batch(seed: int = 0, side: int = 16) -> tuple[Tensor, Tensor]:
    labels = torch.arange(32) % 4
    looks = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(32, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(looks[labels], side) + 0.3 * noise, labels


def converted(model: nn.Module, method: str = "ours", bits: int = 4, abits: int | None = None, **options: object):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftFloat)
        return quantize_model(model, method, bits, bits if abits is None else abits, **{**ALL, **options})


def bits_of(method: str) -> int:
    return max(set(METHODS[method].weight_bits) & set(METHODS[method].act_bits))


@pytest.mark.parametrize("make", [Own, Tokens])
@pytest.mark.parametrize("method", METHODS)
def test_every_layer_is_quantized_calibrated_trained_and_packed(method: str, make: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = converted(make(), method, bits_of(method))
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(isinstance(layer, QuantLayer) for layer in layers)
    (x, labels), (other, _) = batch(), batch(1)
    calibrate(network, [x, other])
    optimizer = torch.optim.Adam(network.train().parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(map(math.isfinite, losses))
    assert min(losses[-10:]) < 0.8 * losses[0]
    expected = network.eval()(x)
    packed.save_state(network, tmp_path / "own.safetensors")
    twin = packed.load_into(converted(make(), method, bits_of(method)), tmp_path / "own.safetensors")
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("method", ["ours", "uniform", "lsq"])
def test_a_file_is_hardly_more_than_codes_and_what_is_float(method: str, bits: int, tmp_path: Path) -> None:
    network = calibrate(converted(Own(96), method, bits), [batch()[0]])
    packed.save_state(network, tmp_path / "own.safetensors")
    covered = coverage(network, batch()[0][:1])
    floats = covered.parameters - covered.quantized_parameters
    assert covered.quantized_parameters > 0.98 * covered.parameters
    assert (tmp_path / "own.safetensors").stat().st_size <= 1.05 * (
        covered.quantized_parameters * bits / 8 + 4 * floats
    )


@pytest.mark.parametrize(("method", "most"), [("ours", 0.25), ("uniform", 0.1), ("lsq", 0.1)])
@torch.no_grad()
def test_8_bits_begin_near_the_float_function(method: str, most: float) -> None:
    """The warp of ``ours`` costs 4.5 % of the variance of each tensor; nothing is lost of its scale."""
    torch.manual_seed(0)
    for model in (Own().eval(), Tokens().eval()):
        network = calibrate(converted(model, method, 8), [batch()[0], batch(1)[0]]).eval()
        x = batch(2)[0]
        assert (network(x) - model(x)).norm() < most * model(x).norm()


@pytest.mark.parametrize("make", [Own, Tokens])
def test_at_32_bits_it_is_the_float_network_bit_for_bit(make: type) -> None:
    torch.manual_seed(0)
    model = make().train()
    network = converted(model, bits=32)
    assert not any(isinstance(module, QuantLayer | StandardisedAct) for module in network.modules())
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = model(batch()[0])
        torch.manual_seed(seed)
        assert torch.equal(network(batch()[0]), expected)


def test_without_the_flags_linear_layers_and_such_convolutions_stay_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten())
    model.append(nn.Linear(8 * 14 * 14, 4))
    with pytest.warns(LeftFloat):
        plain = quantize_model(model)
    assert [type(plain.get_submodule(name)) for name in "035"] == [QuantConv2d, nn.Conv2d, nn.Linear]
    with pytest.warns(LeftFloat):
        linear = quantize_model(model, linear=True)
    assert [type(linear.get_submodule(name)) for name in "035"] == [QuantConv2d, nn.Conv2d, QuantLinear]
    assert [type(converted(model).get_submodule(name)) for name in "035"] == [QuantConv2d, QuantConv2d, QuantLinear]


@pytest.mark.parametrize(
    ("method", "own"), [("ours", "5 9 10"), ("uniform", "5 9 10"), ("lsq", "3 5 9 10"), ("dorefa", "5")]
)
def test_layers_quantize_an_input_that_is_not_levels_already(method: str, own: str) -> None:
    """The image is float; behind 1 and its ReLU are levels; 3 has no BatchNorm; an average of levels is no level.

    What enters 9 and 10 can be negative.
    """
    norm = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    free = [nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = converted(nn.Sequential(*norm, *free, nn.Linear(8, 8), nn.Linear(8, 4)), method)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, QuantLayer)}
    quantizing = {name for name, layer in layers.items() if isinstance(layer.input_quantizer, QuantAct)}
    assert quantizing == set(own.split())


@torch.no_grad()
def test_layers_receive_levels() -> None:
    network = calibrate(converted(Own(), bits=3, abits=2), [batch()[0]])
    levels = {one.layer: one for one in measure(network, batch()[0])}
    assert set(levels) == {"stem", "depthwise", "one", "two", "head.0", "head.3"}
    assert all(one.weight_levels <= 8 for one in levels.values())
    assert all(one.input_levels <= 4 for name, one in levels.items() if name != "stem")


def test_negative_inputs_of_a_method_without_codes_for_them_are_named() -> None:
    assert left_float(converted(Own(), "dorefa")) == {
        f"head.{layer}": "its input: can be negative, dorefa has no codes for that" for layer in (0, 3)
    }


def test_statistics_are_estimated_and_measured_like_a_batch_norms() -> None:
    network = converted(Own())
    batches = [batch(seed)[0] for seed in range(3)]
    calibrate(network, batches)
    quantizer = network.get_submodule("depthwise").input_quantizer
    with torch.no_grad():
        seen = [F.relu(network.get_submodule("stem")(x)) for x in batches]
    torch.testing.assert_close(quantizer.running_mean, torch.stack([x.mean() for x in seen]).mean())
    assert quantizer.momentum == 0.1
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = {(row.layer, row.what) for row in sensitivity(network, batches[:1]).rows}
    assert {("depthwise", "input"), ("head.3", "weights")} <= rows
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_statistics_nothing_is_shipped_or_evaluated(tmp_path: Path) -> None:
    network = converted(Own()).eval()
    with pytest.raises(UserError, match="no statistics yet"):
        network(batch()[0])
    with pytest.raises(UserError, match="never set"):
        packed.save_state(network, tmp_path / "own.safetensors")


def test_a_network_with_other_inputs_is_refused(tmp_path: Path) -> None:
    packed.save_state(calibrate(converted(Own(), "lsq"), [batch()[0]]), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="another network"):
        packed.load_into(converted(Own(), "lsq", all_convs=False), tmp_path / "own.safetensors")


def test_tied_weights_with_scales_of_their_own_are_packed_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 48, bias=False), nn.Linear(48, 48, bias=False))
    model[2].weight = model[1].weight
    network = calibrate(converted(model, "lsq"), [torch.randn(8, 3, 4, 4)])
    with torch.no_grad():
        network.get_submodule("2").weight_quantizer.scale.mul_(1.7)
    x = torch.randn(2, 3, 4, 4)
    packed.save_state(network, tmp_path / "tied.safetensors")
    assert torch.equal(packed.load_into(converted(model, "lsq"), tmp_path / "tied.safetensors")(x), network(x))


def test_attention_is_that_of_torch_and_reads_its_state() -> None:
    torch.manual_seed(0)
    for first in (True, False):
        theirs = nn.MultiheadAttention(24, 4, dropout=0.2, batch_first=first)
        ours = SelfAttention(nn.MultiheadAttention(24, 4, dropout=0.2, batch_first=first))
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(3, 5, 24)
        torch.manual_seed(1)
        expected, _ = theirs(x, x, x, need_weights=False)
        torch.manual_seed(1)
        assert torch.equal(ours(x)[0], expected)


def test_products_of_attention_stay_float_and_are_named() -> None:
    network = converted(Tokens())
    assert left_float(network) == {"attention": "its products of queries, keys and values"}
    assert isinstance(network.get_submodule("attention.in_proj"), QuantLinear)
    masked = left_float(converted(Tokens(mask=True)))
    assert masked["attention"] == "attention of several tensors, with a mask, or whose weights are read"


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.std(), self.bias)


def test_a_class_of_the_users_is_quantized_if_it_multiplies_by_its_weight_as_it_is(tmp_path: Path) -> None:
    layers = [Padded(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Standardised(8, 8, 1), nn.BatchNorm2d(8)]
    with pytest.warns(LeftFloat):
        network = quantize_model(nn.Sequential(*layers))
    assert left_float(network) == {"3": "a Standardised"}
    assert isinstance(network.get_submodule("0"), QuantLayer)
    assert isinstance(network.get_submodule("0"), Padded)
    x, layer = batch()[0], network.get_submodule("0")
    assert torch.equal(layer(x), F.conv2d(x, layer.weight_quantizer(layer.weight), layer.bias, padding=1))
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert set(network.state_dict()) == set(nn.Sequential(*layers).state_dict())


class Plain(nn.Sequential):
    def __init__(self) -> None:
        conv = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*conv, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_float_forms_know_these_layers_and_the_integer_form_is_right_or_refuses(method: str) -> None:
    torch.manual_seed(0)
    network, x = calibrate(converted(Plain(), method, bits_of(method)), [batch()[0]]).eval(), batch(1)[0]
    expected = network(x)
    assert torch.equal(exported_program(network, (3, 16, 16)).module()(x), expected)
    session = open_session(onnx_model(network, (3, 16, 16), {}).SerializeToString(), 1)
    torch.testing.assert_close(
        torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected, rtol=1e-4, atol=1e-5
    )
    if method in ("ours", "uniform"):  # mean + std * level is no multiple of a unit
        with pytest.raises(UserError, match="integers times a unit, unlike those of Standard") as refusal:
            integer_network(network)
        assert "\n" not in str(refusal.value)
    else:
        torch.testing.assert_close(integer_network(network)(x), expected, rtol=1e-4, atol=1e-5)


def test_conversion_draws_no_random_numbers() -> None:
    model = Own()
    before = torch.get_rng_state()
    converted(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_float_file_of_torchs_attention_loads_into_the_converted_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "float.pt")
    network = converted(Tokens())
    report, _ = load_weights(network, tmp_path / "float.pt")
    assert report.missing == report.left_out == ()
    assert torch.equal(network.get_submodule("attention.in_proj").weight, model.attention.in_proj_weight)
