"""Alignment files: the same predictions in every form, small, and one line for what is none or another network's."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from common.adaptation.realign import realign
from common.deploy import alignment as alignments
from common.deploy import packed
from common.deploy.alignment import Alignment, base_digest
from common.deploy.description import Description
from common.deploy.files import open_file
from common.deploy.formats.onnx import ONNX
from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.onnx.statistics import set_statistics
from common.deploy.onnx.writer import NetworkWriter
from common.deploy.packed import file as packed_file
from common.errors import UserError
from common.models import build_model, class_logits
from common.quantizers import METHODS
from tests.adaptation.test_realign import images_of
from tests.deploy.test_packed import network_of

NAME = "target.alignment.safetensors"


def aligned(network: nn.Module, path: Path, **about: Any) -> Alignment:
    """Re-align a network and write the file."""
    found = realign(network, images_of(16), prior=8)
    alignment = Alignment(
        found.statistics, base_digest(network), **{"images": 16, "source": "x", "prior": 8.0, **about}
    )
    alignment.save(path)
    return alignment


def of_method(method: str) -> tuple[nn.Module, Description]:
    return network_of("resnet20_quant", method=method, bitW=max(METHODS[method].weight_bits), abitW=4)


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_file_gives_what_the_realigned_network_gives(method: str, tmp_path: Path) -> None:
    network, description = of_method(method)
    packed.save(network, description, tmp_path / "model.safetensors")
    aligned(network, tmp_path / NAME)
    images = images_of(4, seed=5)
    file = open_file(tmp_path / "model.safetensors", alignment=tmp_path / NAME)
    with torch.no_grad():
        assert torch.equal(file.logits(images), class_logits(network, images))
    assert not torch.equal(file.logits(images), open_file(tmp_path / "model.safetensors").logits(images))
    assert any("re-aligned by 16 images of x, prior 8" in note for note in file.notes)


@pytest.mark.parametrize("method", ["lsq", "bwnf"])
def test_an_onnx_file_gives_it_too(method: str, tmp_path: Path) -> None:
    network, description = of_method(method)
    with torch.no_grad():
        for norm in [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][:2]:
            norm.running_var.fill_(1.5)  # equal constants of several layers are stored once
            norm.running_mean.fill_(0.5)
    ONNX.write(network, description, tmp_path / "model.onnx")
    aligned(network, tmp_path / NAME)
    images = images_of(4, seed=5, side=32)
    logits = open_file(tmp_path / "model.onnx", alignment=tmp_path / NAME).logits(images)
    with torch.no_grad():
        expected = class_logits(network, images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.1 * float(expected.std()))  # a sum on a threshold


class Twice(nn.Module):
    """One BatchNorm behind two convolutions, and one whose module goes on from it."""

    class Active(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.norm, self.active = nn.BatchNorm2d(8), self.Active(8)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.two(self.active(self.norm(self.one(x)))))
        return self.last(self.active(x).mean((2, 3)))


@pytest.mark.parametrize("form", [NetworkWriter, IntegerWriter])
def test_an_onnx_file_gives_it_where_a_layer_is_used_twice(form: type[NetworkWriter], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, images = Twice().eval(), images_of(4, seed=5)
    model = onnx_model(network, (3, *images.shape[2:]), {}, form)
    set_statistics(model, aligned(network, tmp_path / NAME).statistics)
    (logits,) = open_session(model.SerializeToString(), 1).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(images).detach(), atol=1e-4, rtol=1e-4)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = aligned(network_of("resnet20_quant", bitW=32)[0], tmp_path / NAME, source="photos of a street")
    read = alignments.load(tmp_path / NAME)
    assert (read.base, read.images, read.source, read.prior) == (written.base, 16, "photos of a street", 8.0)
    assert all(torch.equal(read.statistics[name], values) for name, values in written.statistics.items())


def test_the_digest_is_of_all_but_the_statistics() -> None:
    network, _ = network_of("MNISTmodel_quant", method="lsq", bitW=4, abitW=4, img_size=16)
    before = base_digest(network)
    realign(network, images_of(8), prior=0)
    assert base_digest(network) == before
    for name, parameter in network.named_parameters():
        if "weight_quantizer" in name:
            continue  # a scale of weights moves their codes or values only from some step on
        with torch.no_grad():
            old = parameter.clone()
            parameter.mul_(1.5).add_(0.25)
            assert base_digest(network) != before, name
            parameter.copy_(old)
    assert base_digest(network) == before


@pytest.mark.parametrize("other", [{"bitW": 2}, {"method": "uniform"}])
def test_another_network_refuses_it_and_stays_as_it_was(other: dict, tmp_path: Path) -> None:
    aligned(network_of("resnet20_quant", bitW=4, abitW=4)[0], tmp_path / NAME)
    network, description = network_of("resnet20_quant", **{"bitW": 4, "abitW": 4, **other})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match="of another network than this one"):
        alignments.load(tmp_path / NAME).apply(network, tmp_path / NAME)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    ONNX.write(network, description, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="of another network than this one"):
        open_file(tmp_path / "model.onnx", alignment=tmp_path / NAME)


def test_a_file_for_resnet50_has_less_than_300_kilobytes(tmp_path: Path) -> None:
    network = build_model("resnet50_dann", bitW=4, abitW=4)
    layers = alignments.layers_with_statistics(network)
    statistics = {name: torch.rand(2, norm.num_features) for name, norm in layers.items()}
    Alignment(statistics, "0" * 64, 256, "photos", 128.0).save(tmp_path / NAME)
    assert sum(values.shape[1] for values in statistics.values()) >= 26_560
    assert (tmp_path / NAME).stat().st_size < 300_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alignment") / NAME
    aligned(network_of("resnet20_quant", bitW=4, abitW=4)[0], path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        alignments.load(path)
    assert str(path) in str(error.value)
    return str(error.value)


def rewritten(good: Path, path: Path, change: dict[str, Tensor], **about: Any) -> Path:
    """The file with other values and a checksum that fits."""
    with safetensors.safe_open(good, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()} | change  # noqa: SIM118
        metadata = file.metadata()
    text = json.dumps(json.loads(metadata["network"]) | about)
    seal = packed_file._checksum(text, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {**metadata, "network": text, "sha256": seal}))
    return path


@pytest.mark.parametrize("at", [0, 200, 5000, -1])
def test_a_damaged_byte_is_noticed(good: Path, tmp_path: Path, at: int) -> None:
    content = bytearray(good.read_bytes())
    content[at] ^= 0x10
    (tmp_path / NAME).write_bytes(content)
    refusal(tmp_path / NAME)


@pytest.mark.parametrize("length", [0, 5, 3000])
def test_a_file_that_is_cut_short_is_refused(good: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / NAME).write_bytes(good.read_bytes()[:length])
    assert "not a complete safetensors file" in refusal(tmp_path / NAME)


@pytest.mark.parametrize(
    ("about", "what"),
    [
        ({"base": "abc"}, "its base is"),
        ({"base": 7}, "its base is"),
        ({"images": 0}, "its number of images is"),
        ({"images": True}, "its number of images is"),
        ({"images": 10**30}, "its number of images is"),
        ({"source": "a\nb"}, "its source is"),
        ({"source": "a" * 100_000}, "its source is"),
        ({"prior": -1}, "its prior is"),
        ({"prior": float("nan")}, "its prior is"),
        ({"prior": 10**400}, "its prior is"),
        ({"prior": None}, "its prior is"),
    ],
)
def test_what_it_says_of_itself_has_bounds(good: Path, tmp_path: Path, about: dict, what: str) -> None:
    line = refusal(rewritten(good, tmp_path / NAME, {}, **about))
    assert what in line
    assert len(line) < 1000


@pytest.mark.parametrize(
    "values",
    [
        torch.full((2, 16), torch.nan),
        torch.full((2, 16), torch.inf),
        -torch.ones(2, 16),
        torch.ones(3, 16),
        torch.ones(2),
        torch.ones(2, 0),
        torch.ones(2, 16, dtype=torch.float64),
    ],
)
def test_statistics_that_cannot_be_are_refused(good: Path, tmp_path: Path, values: Tensor) -> None:
    assert "no alignment file of this program" in refusal(rewritten(good, tmp_path / NAME, {"bn": values}))


@pytest.mark.parametrize("change", [{"bn": torch.ones(2, 17)}, {"no.such.layer": torch.ones(2, 16)}])
def test_layers_that_the_network_does_not_have_are_refused(good: Path, tmp_path: Path, change: dict) -> None:
    network, _ = network_of("resnet20_quant", bitW=4, abitW=4)
    forged = alignments.load(rewritten(good, tmp_path / NAME, change))
    before = network.bn.running_mean.clone()
    with pytest.raises(UserError, match="of another network"):
        forged.apply(network, tmp_path / NAME)
    assert torch.equal(network.bn.running_mean, before)


def test_other_files_are_told_apart(good: Path, tmp_path: Path) -> None:
    network, description = network_of("resnet20_quant", bitW=4, abitW=4)
    packed.save(network, description, tmp_path / "model.safetensors")
    assert "a packed network, but not an alignment file" in refusal(tmp_path / "model.safetensors")
    assert "no such file" in refusal(tmp_path / "none.alignment.safetensors")
    assert "a folder" in refusal(tmp_path)
    with pytest.raises(UserError, match="an alignment file, but not a packed network"):
        packed.load(good)
    with open(tmp_path / "large.safetensors", "wb") as file:
        file.truncate(alignments.MOST_BYTES + 1)
    assert "larger than 64 MiB" in refusal(tmp_path / "large.safetensors")
