"""The packed state of a network that has no name: filled into one that is built alike, and refused by any other."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.errors import UserError
from common.quantizers import METHODS


class Own(nn.Module):
    """What a user's network may have: a layer used twice, tied weights, plain BatchNorms, a buffer of integers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width, affine=False), nn.ReLU())
        self.twice = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.again = self.twice
        self.last = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)
        self.other.weight = self.one.weight
        self.register_buffer("order", torch.arange(width).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.again(self.twice(self.stem(x)))).mean((2, 3))
        return self.other(self.one(x)[:, self.order])


def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def quantized(method: str = "ours", bits: int = 4, abits: int = 4, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_model(Own(), method, bits, abits, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "own.safetensors"
    packed.save_state(calibrate(quantized(), [images()]), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_another_copy_of_the_network_computes_the_same(method: str, tmp_path: Path) -> None:
    bits = max(METHODS[method].weight_bits)
    network = calibrate(quantized(method, bits), [images()]).eval()
    packed.save_state(network, tmp_path / "own.safetensors")
    other = packed.load_into(quantized(method, bits, seed=1), tmp_path / "own.safetensors")
    expected = network(images())
    assert expected.std() > 0
    assert torch.equal(other(images()), expected)
    assert not other.training


@pytest.mark.parametrize(
    ("built", "says"),
    [
        ({"bits": 2}, "codes is"),
        ({"abits": 2}, r"AlignAct\(bits=4\) .* expected AlignAct\(bits=2\)"),
        ({"act_range": 3.0}, "act_quantizers"),
        ({"method": "uniform"}, "act_quantizers"),
        ({"method": "lsq"}, "no such layer"),
    ],
    ids=str,
)
def test_a_network_that_is_built_otherwise_is_refused_and_left_alone(built: dict, says: str, saved: Path) -> None:
    network = quantized(**built)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match=says) as error:
        packed.load_into(network, saved)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_files_with_and_without_a_name_are_not_mistaken_for_each_other(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without a name, but not a packed network"):
        packed.load(saved)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="damaged"):
        packed.load_into(quantized(), damaged)


def test_a_parameter_with_a_name_of_the_file_is_refused(tmp_path: Path) -> None:
    network = quantized()
    network.scales = nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match="scales, a name that packed files use"):
        packed.save_state(network, tmp_path / "own.safetensors")
