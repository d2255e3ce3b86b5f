"""The benchmark: what it counts, and a run of it on a tiny step."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.quantizers import METHODS
from tests.conftest import REPOSITORY
from tests.tools.entry import refused, type_in
from tools.timing import measuring


def test_peak_memory_is_the_most_that_is_held_at_once() -> None:
    def step() -> None:
        one, other = torch.empty(1 << 18), torch.empty(1 << 18)  # 1 MiB each
        del one, other
        torch.empty(3 << 17)  # 1.5 MiB, alone

    assert measuring.peak_memory(step, "cpu") == 2


def test_ratios_pair_the_steps_of_a_round() -> None:
    assert measuring.ratios([2.0, 6.0, 8.0], [1.0, 2.0, 2.0]) == (3.0, 2.0, 4.0)


def test_a_benchmark_leaves_a_table_figures_and_a_picture(tmp_path: Path) -> None:
    words = "--kinds ours,ours+crp --modes eager --batch 4 --img_size 8 --rounds 1 --device cpu --profile --out"
    command = [sys.executable, "tools/benchmark.py", *words.split(), str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "benchmark.json").read_text())
    rows = {row["kind"]: row for row in content["rows"]}
    assert list(rows) == ["float", "ours", "ours+crp"]
    assert rows["float"]["ratio"] == rows["float"]["memory_ratio"] == 1
    assert rows["ours"]["ratio"] == rows["ours"]["seconds"][0] / rows["float"]["seconds"][0]
    assert f"| ours, eager | {1000 * rows['ours']['median']:.0f} |" in result.stdout
    assert all(len(operators) == 5 for operators in content["dearest"].values())
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


NETWORK = """
from torch import nn

def net(num_classes=3):
    stem = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


def test_a_network_of_a_users_file_is_measured_as_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    words = "--kinds all --modes eager --batch 4 --img_size 16 --rounds 1 --device cpu --quant_linear --out"
    status, out, errors = type_in(
        "benchmark", "--model", f"{tmp_path / 'mine.py'}:net", *words.split(), tmp_path / "out"
    )
    assert status == 0, errors
    assert "mine.py:net, 16 x 16, batch 4, 4 bits" in out
    kinds = [row["kind"] for row in json.loads((tmp_path / "out/benchmark.json").read_text())["rows"]]
    assert kinds == ["float", *METHODS, "ours+crp"], "Brevitas's layers are for the paper's networks"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "resnet20"), "expected one of resnet20_quant, "),
        (("--model", "torchvision:vit_b_16", "--quant_linear", "--img_size", 64), "images of 64 x 64"),
        (("--model", "torchvision:alexnet", "--img_size", 64), "has nothing to quantize.*--quant_linear"),
        (("--quant_linear",), "--quant_linear: resnet20_quant keeps the layers of the paper"),
    ],
)
def test_a_network_that_cannot_be_measured_is_refused(words: tuple[object, ...], expected: str) -> None:
    assert re.search(expected, refused("benchmark", *words))


def test_an_unknown_kind_is_refused() -> None:
    assert "--kinds: expected one of float, ours" in refused("benchmark", "--kinds", "our")


def test_bits_that_a_method_does_not_define_are_refused_before_the_first_step() -> None:
    assert "--bitW 1: method lsq defines" in refused("benchmark", "--kinds", "float,lsq", "--bits", 1)
