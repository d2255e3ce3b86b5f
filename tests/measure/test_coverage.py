"""What of a network is quantized: counted by hand for small ones, and in one line for the paper's."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from common.conversion import quantize_model
from common.measure.coverage import coverage
from common.models import build_model


def small() -> nn.Module:
    head = [nn.Conv2d(4, 6, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head)


def converted(model: nn.Module, *arguments: object, **options: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_model(model, *arguments, **options)


def image(batch: int = 2, side: int = 8) -> Tensor:
    return torch.randn(batch, 3, side, side)


STEM, ONE, LINEAR = 36 * 4 * 27, 36 * 6 * 4, 6 * 36 * 5


def test_shares_are_counted_of_one_image() -> None:
    found = coverage(converted(small()), image())
    assert (found.parameters, found.quantized_parameters) == (4 * 27 + 4 + 8 + 24 + 6 * 36 * 5 + 5, 4 * 27)
    assert (found.multiplications, found.by_weight) == (STEM + ONE + LINEAR, STEM)
    assert found.quantized_multiplications == 0, "the image is float"
    assert found.left_float == {"3": "no BatchNorm behind it", "6": "a Linear"}
    assert found.others == {"BatchNorm2d": 8}
    whole = coverage(converted(small(), linear=True, all_convs=True), image())
    assert whole.quantized_multiplications == ONE + LINEAR
    assert whole.by_weight == whole.multiplications
    assert whole.left_float == {}


def test_float_inputs_are_no_quantized_multiplications() -> None:
    only = coverage(converted(small(), "ours", 4, 32, linear=True, all_convs=True), image())
    assert (only.quantized_multiplications, only.by_weight) == (0, STEM + ONE + LINEAR)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GELU(), nn.Linear(8, 8))
    named = coverage(converted(model, "dorefa", linear=True, all_convs=True), image())
    assert named.left_float == {"3": "its input: can be negative, dorefa has no codes for that"}
    assert named.quantized_multiplications == 0


def test_products_of_attention_are_counted_and_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2)
            return self.attention(x, x, x, need_weights=False)[0]

    found = coverage(converted(Attention(), linear=True, all_convs=True).eval(), torch.randn(2, 5, 2, 4))
    projections, products = 5 * 8 * 8 * 4, 2 * 5 * 5 * 8
    assert found.multiplications == projections + products
    assert found.by_weight == projections
    assert list(found.left_float) == ["attention"]


@pytest.mark.parametrize("method", ["ours", "lsq"])
def test_the_papers_networks_have_their_line_too(method: str) -> None:
    network = build_model("resnet20_quant", method, bitW=4, abitW=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    line = coverage(network, image(1, 32)).line()
    assert "quantized: 99.2 % of 272," in line
    assert "98.9 % of 40,813,184 multiplications (100.0 % by a quantized weight)" in line
    assert "float: logit (a Linear); BatchNorm2d" in line
    assert "\n" not in line
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_dann_network_is_measured_by_what_is_shipped() -> None:
    found = coverage(build_model("MNISTmodel_quant", bitW=4, abitW=4, img_size=16), image(2, 16))
    assert found.lines()[0] == "left float: classifier.0: a Linear"
    assert coverage(nn.Linear(3, 2), torch.randn(1, 3)).line().startswith("quantized: 0.0 % of 8 parameters")
