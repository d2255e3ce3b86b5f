"""Packed files: the same function, the promised size, and one line for a file that is not what it should be."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.deploy.description import Description, describe
from common.deploy.packed import file as packed_file
from common.errors import UserError
from common.models import NETWORKS, class_logits
from common.quantizers import METHODS


def network_of(model: str, **config: Any) -> tuple[nn.Module, Description]:
    """A network in evaluation mode whose statistics and learned scales come from a batch."""
    torch.manual_seed(0)
    description = describe({"model": model, **config}, 10)
    reversal = (0.0,) if description.data_kind in ("digits", "office") else ()
    return calibrate(description.build(), [images_for(description)], *reversal), description


def images_for(description: Description) -> torch.Tensor:
    size = description.arguments.get("img_size", 16)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def parts_of_the_promise(network: nn.Module) -> tuple[int, int]:
    """Bytes of codes by the formula, and of the floats that evaluation reads."""
    codes = floats = 0
    for module in network.modules():
        own = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, nn.Conv2d):
            bits = getattr(getattr(module, "weight_quantizer", None), "bits", 32)
            codes += -(-module.weight.numel() * bits // 8)
            own -= module.weight.numel()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            own += 2 * module.num_features
        floats += 4 * own
    return codes, floats


CASES = [("resnet20_quant", {"method": name, "bitW": max(m.weight_bits), "abitW": 4}) for name, m in METHODS.items()]
CASES += [("torchvision:mnasnet0_5", config) for _, config in CASES]
CASES += [
    ("resnet20_quant", {"bitW": 4, "abitW": 32}),
    ("resnet20_quant", {"bitW": 32, "abitW": 4}),
    ("resnet20_quant", {"method": "lsq", "bitW": 32, "abitW": 4}),
    ("resnet20_quant", {"bitW": 32, "abitW": 32}),
    ("resnet20_quant", {"bitW": 32, "abitW": 32, "stage": "align"}),
    ("resnet20_quant", {"bitW": 3, "abitW": 3, "levels": "published"}),
    ("MNISTmodel_quant", {"bitW": 2, "abitW": 2, "img_size": 16}),
    ("MNISTmodel_quant", {"method": "apot", "bitW": 3, "abitW": 3, "img_size": 16}),
]


@pytest.mark.parametrize(
    ("model", "config"),
    CASES,
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_loaded_network_gives_the_same_logits(model: str, config: dict, tmp_path: Path) -> None:
    network, description = network_of(model, **config)
    path = tmp_path / "model.safetensors"
    packed.save(network, description, path)
    loaded, read = packed.load(path)
    assert read == description
    images = images_for(description)
    expected = class_logits(network, images)
    assert expected.std() > 0
    assert torch.equal(class_logits(loaded, images), expected)
    assert not loaded.training


@pytest.mark.parametrize("model", ["resnet20_quant", "resnet56_quant", "MNISTmodel_quant", "torchvision:mnasnet0_5"])
def test_a_file_has_the_promised_size_at_every_width(model: str, tmp_path: Path) -> None:
    for bits in (1, 2, 8) if model in ("resnet56_quant", "torchvision:mnasnet0_5") else range(1, 9):
        network, description = network_of(model, bitW=bits, abitW=bits)
        packed.save(network, description, tmp_path / "model.safetensors")
        codes, floats = parts_of_the_promise(network)
        assert codes + floats <= (tmp_path / "model.safetensors").stat().st_size <= 1.03 * (codes + floats) + 16 * 1024


@pytest.mark.parametrize("method", ["lsq", "bwnf"])
def test_scales_fit_into_the_promise_too(method: str, tmp_path: Path) -> None:
    network, description = network_of("resnet56_quant", method=method, bitW=8, abitW=8)
    packed.save(network, description, tmp_path / "model.safetensors")
    codes, floats = parts_of_the_promise(network)
    assert (tmp_path / "model.safetensors").stat().st_size <= 1.03 * (codes + floats) + 16 * 1024


def test_every_network_has_a_description_that_survives_json() -> None:
    for model in NETWORKS:
        description = describe({"model": model, "bitW": 4, "abitW": 4, "demo": True}, 10)
        assert Description.from_json(description.to_json()) == description


def test_a_scale_that_was_never_set_is_refused(tmp_path: Path) -> None:
    description = describe({"model": "resnet20_quant", "method": "lsq", "bitW": 4, "abitW": 4}, 10)
    with pytest.raises(UserError, match="never set"):
        packed.save(description.build(), description, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    packed.save(*network_of("resnet20_quant", bitW=2, abitW=2), path)
    return path


def rewritten(good: Path, path: Path, seal: bool, network: dict | None = None, drop: str = "", **metadata: str) -> Path:
    """The file with other metadata or without a tensor; ``seal`` makes the checksum fit again."""
    with safetensors.safe_open(good, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
        old = file.metadata()
    old["network"] = json.dumps(json.loads(old["network"]) | (network or {}))
    old |= {"sha256": packed_file._checksum(old["network"], tensors)} if seal else {}
    path.write_bytes(safetensors.torch.save(tensors, {**old, **metadata}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        packed.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("at", [0, 40, 5000, -1])
def test_a_damaged_byte_is_noticed(good: Path, tmp_path: Path, at: int) -> None:
    content = bytearray(good.read_bytes())
    content[at] ^= 0x10
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("length", [0, 5, 3000, 50_000])
def test_a_file_that_is_cut_short_is_refused(good: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(good.read_bytes()[:length])
    assert "not a complete safetensors file" in refusal(path)


def test_foreign_missing_and_newer_files_are_refused(good: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(safetensors.torch.save({"weight": torch.zeros(3)}))
    assert "not a packed network" in refusal(foreign)
    assert "no such file" in refusal(tmp_path / "none.safetensors")
    assert "folder" in refusal(tmp_path)
    newer = rewritten(good, tmp_path / "newer.safetensors", True, format_version=str(packed_file.VERSION + 1))
    assert "update" in refusal(newer)
    torch.save({"a": torch.zeros(2)}, tmp_path / "torch.safetensors")
    assert "not a complete safetensors file" in refusal(tmp_path / "torch.safetensors")


@pytest.mark.parametrize(
    "network",
    [
        {"model": "resnet99"},
        {"model": "torchvision:resnet18", "task": "none"},
        {"model": "torchvision:resnet17", "task": "none"},
        {"model": 7},
        {"task": "dann_digits"},
        {"arguments": {"num_classes": 10**12}},
        {"arguments": {"num_classes": "ten"}},
        {"scheme": {"method": "ours", "bitW": 3, "abitW": 2}},
        {"scheme": {"method": "ours", "bitW": 11}},
        {"scheme": 5},
        {"preprocessing": {}},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_is_refused_before_anything_is_allocated(
    good: Path, tmp_path: Path, network: dict
) -> None:
    refusal(rewritten(good, tmp_path / "forged.safetensors", True, network))


def test_a_missing_tensor_and_a_changed_description_are_refused(good: Path, tmp_path: Path) -> None:
    assert "logit.bias" in refusal(rewritten(good, tmp_path / "a.safetensors", True, drop="logit.bias"))
    refusal(rewritten(good, tmp_path / "b.safetensors", True, drop="levels"))
    changed = {"scheme": {"method": "ours", "bitW": 2, "abitW": 2, "act_range": 3.0}}
    assert "checksum" in refusal(rewritten(good, tmp_path / "c.safetensors", False, changed))


def test_loading_executes_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "model.safetensors"
    torch.save({"network": Bomb()}, path)
    refusal(path)
    assert not (tmp_path / "executed").exists()


def test_without_safetensors_one_line_says_what_to_install(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"\[deploy\]"):
        packed.load(good)
    with pytest.raises(UserError, match=r"\[deploy\]"):
        packed.save(*network_of("resnet20_quant", bitW=2, abitW=2), tmp_path / "model.safetensors")


def test_the_same_network_is_always_the_same_bytes(tmp_path: Path) -> None:
    """safetensors keeps a header in a hash map whose order changes from call to call."""
    network, description = network_of("resnet20_quant", method="ours", bitW=4, abitW=4)
    path = tmp_path / "a.safetensors"
    found = set()
    for _ in range(5):
        packed.save(network, description, path)
        found.add(path.read_bytes())
    assert len(found) == 1
