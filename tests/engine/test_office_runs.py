"""DANN and DSAN on image folders through the real command line."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.kinds.office import OfficeOptions, split_seen
from common.models import build_model
from tests.conftest import readme_command, refusal, run, same_weights, start

PROGRAMS = {
    "dann_office": ("resnet50_dann", []),
    "dsan_office": ("resnet50_dsan", ["--param", "0.3"]),
}
README = readme_command('--source_file "dslr_webcam')


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of three classes, eight images each, in the shape of Office-Home."""
    root = tmp_path_factory.mktemp("domains")
    rng = np.random.default_rng(0)
    for shade, domain in enumerate(("Art", "Clipart")):
        for label, name in enumerate(("bike", "mug", "pen")):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 120, (40, 40, 3)) + 40 * shade
                pixels[..., label] += 80
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def small(tmp_path: Path, folders: Path) -> list:
    """A run on them that takes seconds."""
    words = ["--data_dir", folders, "--src_data", "Art", "--tgt_data", "Clipart", "--img_size", 32, "--num_workers", 0]
    words += ["--train_batch_size", 6, "--eval_batch_size", 6, "--backbone_weights", "none", "--num_epochs", 1]
    return [*words, "--job_dir", tmp_path / "job"]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("program", ["dann_office"])
def test_the_readme_command_runs_after_the_same_program_made_the_source_file(program: str, tmp_path: Path) -> None:
    model, extra = PROGRAMS[program]
    task = f"cross_domain/{program}/daq_crp"
    demo = ["--demo", "--data_dir", tmp_path / "data", "--img_size", 32, "--num_epochs", 1, "--num_workers", 0, *extra]
    source = tmp_path / "pretrained" / "dslr_webcam" / "dw_32bit"
    at = README.index("--source_file")
    words = [*README[:at], *README[at + 2 :], *demo, "--model", model, "--bitW", 32, "--abitW", 32]
    first = run(task, *words, "--job_dir", source, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = run(task, *README, *demo, "--model", model, "--job_dir", tmp_path / "job", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    result = summary(tmp_path / "job")
    assert result["crp"] is True
    assert len(result["classes"]) == 31
    assert len(result["relation_shift"]["layers"]) == 2 * 16
    assert "80/20 split per class" in result["protocol"]
    assert (tmp_path / "job" / "split_webcam.tsv").exists(), "the split is a list file"


@pytest.mark.parametrize(("program", "method"), [("dann_office", "bwnf"), ("dsan_office", "lsq")])
def test_another_method_trains_an_epoch(program: str, method: str, small: list) -> None:
    result = run(f"cross_domain/{program}/cdf_alignment", *small, "--method", method, "--bitW", 4, "--pretrained", "no")
    assert result.returncode == 0, result.stderr


def test_other_domain_folders_give_the_number_of_classes(small: list, tmp_path: Path) -> None:
    result = run("cross_domain/dann_office/cdf_alignment", *small, "--bitW", 32, "--train_split", "False")
    assert result.returncode == 0, result.stderr
    assert summary(tmp_path / "job")["classes"] == ["bike", "mug", "pen"]
    assert "whole domain" in summary(tmp_path / "job")["protocol"]
    state = torch.load(tmp_path / "job" / "checkpoint" / "last.pt", weights_only=True)
    assert state["state_dict_t"]["class_classifier.c_fc3.weight"].shape == (3, 2048)


@pytest.mark.parametrize("program", ["dsan_office"])
def test_a_killed_run_resumes_bit_identically_with_crp_and_workers(program: str, small: list, tmp_path: Path) -> None:
    task = f"cross_domain/{program}/daq_crp"
    common = [*small, "--bitW", 4, "--pretrained", "no", "--num_epochs", 2, "--eval_batch_size", 8]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(task, *common, "--job_dir", whole).returncode == 0
    process = start(task, *common, "--job_dir", parts, "--num_workers", 1)
    while not (parts / "checkpoint" / "last.pt").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = run(task, *common, "--job_dir", parts, "--num_workers", 2, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(whole / "checkpoint/last.pt", parts / "checkpoint/last.pt")
    states = [torch.load(folder / "checkpoint/last.pt", weights_only=True)["crp"] for folder in (whole, parts)]
    assert any(value.abs().sum() > 0 for value in states[0].values())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_backbone_weights_from_a_file_leave_the_heads_alone(small: list, tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = build_model("resnet50_dann").backbone().state_dict()
    torch.save({**backbone, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "r50.pth")
    words = [*small, "--bitW", 32, "--lr", "1e-12", "--backbone_weights", tmp_path / "r50.pth"]
    result = run("cross_domain/dsan_office/cdf_alignment", *words)
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "job" / "checkpoint" / "last.pt", weights_only=True)["state_dict_t"]
    torch.testing.assert_close(state["feature_layers.layer4.2.conv3.weight"], backbone["layer4.2.conv3.weight"])


def test_offline_imagenet_weights_get_one_line(small: list, tmp_path: Path) -> None:
    words = [word if word != "none" else "imagenet" for word in small]
    os.environ["TORCH_HOME"] = str(tmp_path)
    os.environ["https_proxy"] = "http://127.0.0.1:9"
    try:
        line = refusal("cross_domain/dann_office/cdf_alignment", *words, "--bitW", 32)
    finally:
        del os.environ["TORCH_HOME"], os.environ["https_proxy"]
    assert "--backbone_weights FILE" in line
    assert "--backbone_weights none" in line


def test_bad_folders_get_one_line(small: list, folders: Path, tmp_path: Path) -> None:
    task = "cross_domain/dann_office/cdf_alignment"
    assert "nowhere" in refusal(task, *small, "--bitW", 32, "--tgt_data", "nowhere")
    missing = refusal(task, "--data_dir", tmp_path, "--bitW", 32, "--job_dir", tmp_path / "job")
    assert "drive.google.com" in missing
    assert "--demo" in missing
    (folders / "Broken" / "bike").mkdir(parents=True)
    for name in ("mug", "pen"):
        (folders / "Broken" / name).mkdir()
        (folders / "Broken" / name / "0.png").write_bytes((folders / "Art" / name / "0.png").read_bytes())
    assert "bike" in refusal(task, *small, "--bitW", 32, "--tgt_data", "Broken"), "an empty class"
    for number in range(8):
        (folders / "Broken" / "bike" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff not an image")
    line = refusal(task, *small, "--bitW", 32, "--tgt_data", "Broken", "--train_batch_size", 2)
    assert ".jpg" in line, "an unreadable image"


def test_the_split_follows_split_seed_alone_and_a_source_of_another_is_named(small: list, tmp_path: Path) -> None:
    task = "cross_domain/dann_office/cdf_alignment"

    def split(name: str, *words: object) -> str:
        result = run(task, *small, *words, "--job_dir", tmp_path / name)
        assert result.returncode == 0, result.stderr
        return (tmp_path / name / "split_Clipart.tsv").read_text()

    assert split("a", "--bitW", 32, "--seed", 0) == split("b", "--bitW", 32, "--seed", 7)
    source = ["--bitW", 4, "--source_file", tmp_path / "a" / "checkpoint" / "last.pt"]
    assert split("c", *source, "--seed", 3) == split("a4", *source)
    assert summary(tmp_path / "c")["source_file_warning"] == ""
    assert split("d", *source, "--split_seed", 2) != split("e", *source)
    assert "another split (--split_seed 1)" in summary(tmp_path / "d")["source_file_warning"]
    assert "trained on another split" in (tmp_path / "d" / "logger.log").read_text()
    whole = run(task, *small, "--bitW", 32, "--train_split", "False", "--job_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    split("f", "--bitW", 4, "--source_file", tmp_path / "whole" / "checkpoint" / "last.pt")
    assert "trained on whole domains" in summary(tmp_path / "f")["source_file_warning"]


def test_a_file_from_before_split_seed_counts_as_split_by_its_seed() -> None:
    assert split_seen(OfficeOptions(), {"seed": 1}) == ""
    assert "another split (--split_seed 0)" in split_seen(OfficeOptions(), {"seed": 0})
    assert split_seen(OfficeOptions(train_split=False), {"seed": 0}) == "", "whole domains are tested as they are"


def test_domains_called_as_those_of_office31_are_just_names_elsewhere(
    small: list, folders: Path, tmp_path: Path
) -> None:
    for name, domain in (("amazon", "Art"), ("webcam", "Clipart")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).symlink_to(folders / domain)
    words = [*small, "--data_dir", tmp_path / "mine", "--src_data", "amazon", "--tgt_data", "webcam", "--bitW", 32]
    result = run("cross_domain/dann_office/cdf_alignment", *words, "--select", "im", "--num_epochs", 2)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    judged = [row["target"]["im"] for row in rows]
    assert summary(tmp_path / "job")["best"]["epoch"] == judged.index(max(judged))
    assert "selected by im)" in result.stdout, "and reads no labels"
    (tmp_path / "mine").rename(tmp_path / "office31")
    line = refusal(
        "cross_domain/dann_office/cdf_alignment", *words, "--data_dir", tmp_path, "--job_dir", tmp_path / "b"
    )
    assert "--allow_partial" in line, "there it is Office-31"
