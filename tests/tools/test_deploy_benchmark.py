"""The benchmark of shipped forms: a row for every engine and form, compared with the best float32."""

import json
from pathlib import Path

import pytest
from torch import nn

from tests.tools.entry import refused
from tools.deploy_benchmark import deploy_benchmark, random_network

pytest.importorskip("openvino", reason="the deploy extra is not installed")


def test_every_form_stands_beside_the_best_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "new" / "speed.json", tmp_path / "drawn" / "speed.png"
    deploy_benchmark(
        networks=("resnet20",), forms=("ours:2", "lsq:4"), batches=(2,), repeats=2, out=out, picture=picture
    )
    rows = {row["form"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"float32 OpenVINO", "float32 onnxruntime", "bf16 OpenVINO", "ours 2 bits", "lsq 4 bits"} <= rows.keys()
    best = min((row for form, row in rows.items() if form.startswith("float32")), key=lambda row: row["ms"])
    assert best["times_faster"] == 1
    assert "| ours 2 bits |" in capsys.readouterr().out
    assert picture.stat().st_size > 0


@pytest.mark.parametrize("forms", ["our:4", "ours", "ours:9", "ours:4,lsq:x"])
def test_a_form_that_there_is_none_of_is_refused_before_any_work(forms: str) -> None:
    assert "--forms: expected METHOD:BITS, not" in refused("deploy_benchmark", "--forms", forms)


def test_no_branch_of_a_random_network_is_switched_off() -> None:
    network, _ = random_network("resnet50", "ours", 4)
    scales = [layer.weight for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(float(scale.detach().abs().min()) >= 0.5 for scale in scales)
