"""tools/quantize.py through its command line, on image folders."""

import os
import re
import subprocess
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


def run(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "tools" / "quantize.py"), *map(str, words)]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_a_pretrained_classifier_is_quantized_reported_and_saved(photos: Path, tmp_path: Path) -> None:
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
    result = run(*words, "--out", tmp_path / "quantized.pt")
    assert result.returncode == 0, result.stderr
    assert "quantized 52 of 52 convolutions" in result.stdout
    assert "left float: layers.8.0.layers.0: its input: can be negative" in result.stdout
    assert "top-1 float: " in result.stdout
    content = checkpoint.read(tmp_path / "quantized.pt")
    config = content["config"]
    assert (config["method"], config["bitW"], config["abitW"], config["classes"]) == ("lsq", 3, 4, ["bike", "mug"])
    network = build_model(config["model"], config["method"], config["bitW"], config["abitW"], num_classes=2)
    network.load_state_dict(content["state_dict_t"])
    assert all(torch.equal(network.state_dict()[key], p) for key, p in floating.named_parameters())
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
    import fire
    import quantize

    from common.engine.cli import run_cleanly

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
    with pytest.raises(SystemExit) as end:
        run_cleanly(lambda: fire.Fire(quantize.quantize, command=list(map(str, words))))
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(text, line)
    assert not list(tmp_path.glob("*.pt"))
