"""A method that says its levels and its steps has every form, though no exporter knows its name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.deploy import packed
from common.deploy.integer.layers import IntegerConv2d
from common.deploy.integer.network import integer_network
from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.program import exported_program
from common.errors import UserError
from common.measure.parity import compare_integer, compare_onnx, references, total
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.scheme import AFTER_RELU, Method
from common.quantizers.steps import Clip, Divide, Lookup, Round, Search, Step, clipped_steps

SQUARES = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)


class RoundedAct(QuantAct):
    """Evenly spaced codes that stand for squares, as in a companding quantizer."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.clamp(0, 3).round() ** 2) / 9

    def steps(self) -> tuple[Step, ...]:
        return Clip(0.0, 3.0), Round(), Lookup(SQUARES), Divide(9.0)


class SearchedAct(QuantAct):
    """The nearest square."""

    def forward(self, x: Tensor) -> Tensor:
        return SQUARES.float()[torch.bucketize(x, (SQUARES[1:] + SQUARES[:-1]).float() / 2)]

    def steps(self) -> tuple[Step, ...]:
        return Search((SQUARES[1:] + SQUARES[:-1]).float() / 2, ends=(0.0, 9.0)), Lookup(SQUARES)


class EvenAct(QuantAct):
    def forward(self, x: Tensor) -> Tensor:
        return (x.clamp(0, 1.5) * (3 / 1.5)).round() / (3 / 1.5)

    def steps(self) -> tuple[Step, ...]:
        return clipped_steps(2, 1.5)


class SilentAct(EvenAct):
    steps = QuantAct.steps


class PowersOfTwo(WeightQuantizer):
    """-1, -1/2, -1/4, 0, 1/4, 1/2, 1 times the largest magnitude of a filter."""

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor([-1, -0.5, -0.25, 0, 0.25, 0.5, 1], dtype=dtype)

    def scales(self, weight: Tensor) -> Tensor:
        return weight.detach().abs().flatten(1).amax(1)

    def forward(self, w: Tensor) -> Tensor:
        levels, scales = self.levels(), self.scales(w).view(-1, 1, 1, 1)
        return levels[torch.bucketize(w / scales, (levels[1:] + levels[:-1]) / 2)] * scales


def network(act: type[QuantAct], monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    method = Method(
        name="new",
        placement=AFTER_RELU,
        weight_bits=[3],
        act_bits=[2],
        weight=lambda bits, scheme: PowersOfTwo(bits),
        activation=lambda bits, scheme: act(bits),
    )
    monkeypatch.setitem(METHODS, "new", method)
    scheme = make_scheme("new", bitW=3, abitW=2)
    torch.manual_seed(0)

    def block(inputs: int, image: bool = False) -> list[nn.Module]:
        return [scheme.conv(inputs, 8, 3, image_input=image), nn.BatchNorm2d(8), nn.ReLU(), scheme.after_relu()]

    model = nn.Sequential(*block(3, True), nn.MaxPool2d(2), *block(8), *block(8), nn.Flatten(), nn.Linear(72, 4))
    for _ in range(20):
        model(torch.randn(8, 3, 16, 16))
    return model.eval()


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("act", [RoundedAct, SearchedAct, EvenAct])
@torch.no_grad()
def test_it_has_every_form(act: type[QuantAct], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(act, monkeypatch), images()
    expected, proto = model(x), onnx_model(model, (3, 16, 16), {})
    assert expected.std() > 0.01
    packed.save_state(model, tmp_path / "state.safetensors")
    loaded = packed.load_into(network(act, monkeypatch), tmp_path / "state.safetensors")
    assert torch.equal(loaded(x), expected)
    onnx = open_session(proto.SerializeToString(), 1).run(None, {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(onnx), expected)
    assert torch.equal(exported_program(model, (3, 16, 16)).module()(x), expected)
    codes = references(model, x)
    assert len(codes) == 3
    for one in (model, loaded):
        integers = integer_network(one)
        torch.testing.assert_close(integers(x), expected)
        weights = [layer.weight for layer in integers.modules() if isinstance(layer, IntegerConv2d)]
        assert [weight.unique().tolist() for weight in weights] == [[-4, -2, -1, 0, 1, 2, 4]] * 2
        for rows in (compare_integer(one, x, codes), compare_onnx(one, onnx_model(one, (3, 16, 16), {}), x, codes)):
            assert total("all", rows).unexplained == total("all", rows).different == 0


@torch.no_grad()
def test_the_bits_of_its_file_are_those_of_its_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    model = network(EvenAct, monkeypatch)
    packed.save_state(model, tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert file.get_tensor("5.codes").numel() == 8 * 8 * 9 * 3 // 8
        assert file.get_tensor("levels").tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]


def test_one_that_does_not_say_its_steps_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(SilentAct, monkeypatch)
    for export in (
        lambda: onnx_model(model, (3, 16, 16), {}),
        lambda: integer_network(model),
        lambda: references(model, images()),
    ):
        with pytest.raises(UserError, match="SilentAct do not say their steps") as refusal:
            export()
        assert "\n" not in str(refusal.value)
