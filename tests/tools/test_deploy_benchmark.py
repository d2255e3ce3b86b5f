"""The benchmark of shipped forms: a row for every engine and form, compared with the best float32."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from common.errors import UserError
from tests.tools.entry import refused
from tools.deploy_benchmark import deploy_benchmark, in_a_process, random_network

pytest.importorskip("openvino", reason="the deploy extra is not installed")


def test_every_form_stands_beside_the_best_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "new" / "speed.jsonl", tmp_path / "drawn" / "speed.png"
    deploy_benchmark(
        networks=("resnet20",), forms=("ours:2", "lsq:4"), batches=(2,), repeats=2, out=out, picture=picture
    )
    rows = {row["form"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert {"float32 OpenVINO", "float32 onnxruntime", "bf16 OpenVINO", "ours 2 bits", "lsq 4 bits"} <= rows.keys()
    best = min((row for form, row in rows.items() if form.startswith("float32")), key=lambda row: row["ms"])
    assert best["times_faster"] == 1
    assert "| ours 2 bits |" in capsys.readouterr().out
    assert picture.stat().st_size > 0


def test_what_the_file_has_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, measured = tmp_path / "speed.jsonl", []

    def measure(name: str, batch: int, forms: tuple[str, ...], repeats: int, threads: int) -> list[dict[str, Any]]:
        measured.append((name, batch))
        if batch == 16:
            raise UserError("killed")
        row = {"form": "float32 OpenVINO", "ms": 1234.0, "times_faster": 1.0, "threads": threads}
        return [{"network": name, "batch": batch, **row}]

    monkeypatch.setattr("tools.deploy_benchmark.in_a_process", measure)
    for _ in range(2):  # the second run begins where the first broke off
        with pytest.raises(UserError, match="killed"):
            deploy_benchmark(networks=("resnet20", "resnet50"), out=out)
    assert measured == [("resnet20", 1), ("resnet20", 128), ("resnet50", 1), ("resnet50", 16), ("resnet50", 16)]
    deploy_benchmark(networks=("resnet20",), out=out)
    assert "| float32 OpenVINO | 1234 (1.00 x) | 1234 (1.00 x) |" in capsys.readouterr().out
    out.write_text('{"network": "resnet20"}\n')
    with pytest.raises(UserError, match="not a file of this program"):
        deploy_benchmark(networks=("resnet20",), out=out)


def test_a_killed_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.deploy_benchmark.row_of", exit_at_once)
    with pytest.raises(UserError, match=r"resnet20, batch 1: its process was killed.*--forms"):
        in_a_process("resnet20", 1, (), 1, 1)


def exit_at_once(*args: Any) -> None:
    os._exit(9)


@pytest.mark.parametrize("forms", ["our:4", "ours", "ours:9", "ours:4,lsq:x"])
def test_a_form_that_there_is_none_of_is_refused_before_any_work(forms: str) -> None:
    assert "--forms: expected METHOD:BITS, not" in refused("deploy_benchmark", "--forms", forms)


def test_no_branch_of_a_random_network_is_switched_off() -> None:
    network, _ = random_network("resnet50", "ours", 4)
    scales = [layer.weight for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(float(scale.detach().abs().min()) >= 0.5 for scale in scales)
