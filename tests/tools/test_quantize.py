"""tools/quantize.py through its command line, on image folders."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.engine import checkpoint
from common.models import build_model
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "photos"
    rng = np.random.default_rng(0)
    for name in ("bike", "mug"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """Status, output and errors of the program, run as a script in this process: its imports take seconds."""
    monkeypatch.setattr(sys, "argv", ["quantize.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / "tools" / "quantize.py"), run_name="__main__")
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_a_pretrained_classifier_is_quantized_reported_and_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(1)
    floating = build_model("torchvision:mnasnet0_5", num_classes=2)
    torch.save(floating.state_dict(), tmp_path / "float.pth")
    words = [
        "--model",
        "torchvision:mnasnet0_5",
        "--weights",
        tmp_path / "float.pth",
        "--images",
        photos,
        "--img_size",
        32,
    ]
    words += ["--method", "lsq", "--bitW", 3, "--abitW", 4, "--calibrate", 2, "--batch_size", 4]
    status, output, errors = run(monkeypatch, capsys, *words, "--out", tmp_path / "quantized.pt")
    assert status == 0, errors
    assert "quantized 52 of 52 convolutions" in output
    assert "left float: layers.8.0.layers.0: its input: can be negative" in output
    assert "top-1 float: " in output
    content = checkpoint.read(tmp_path / "quantized.pt")
    config = content["config"]
    assert (config["method"], config["bitW"], config["abitW"], config["classes"]) == ("lsq", 3, 4, ["bike", "mug"])
    network = build_model(config["model"], config["method"], config["bitW"], config["abitW"], num_classes=2)
    network.load_state_dict(content["state_dict_t"])
    assert all(torch.equal(network.state_dict()[key], p) for key, p in floating.named_parameters())
    step = network.get_submodule("layers.0").weight_quantizer
    assert torch.equal(step.reference, step.initial_scale(floating.state_dict()["layers.0.weight"]).float()), (
        "of the weights given"
    )
    name = "layers.1.running_mean"
    assert not torch.equal(network.state_dict()[name], floating.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--model", "resnet18"], "--model resnet18: expected torchvision:NAME"),
        (["--bitW", "four"], "--bitW four: expected a whole number"),
        (["--images", "nowhere"], "no folder|no domain nowhere"),
        (["--weights", "missing.pth"], "missing.pth: there is no such file"),
        (["--out", "missing/q.pt"], "there is no folder missing"),
        (["--bitsW", 4], "--bitsW: no such flag"),
    ],
)
def test_bad_flags_end_in_one_line(changes: list, text: str, photos: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    words = [
        "--model",
        "torchvision:mnasnet0_5",
        "--images",
        photos,
        "--out",
        tmp_path / "q.pt",
        "--img_size",
        32,
        *changes,
    ]
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(monkeypatch, capsys, *words)
    assert status == 2
    (line,) = errors.splitlines()
    assert re.search(text, line)
    assert not list(tmp_path.glob("*.pt"))
