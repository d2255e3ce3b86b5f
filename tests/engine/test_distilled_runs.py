"""Runs with --distill, --reestimate and --schedule: what they change, what they leave, and what they refuse."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.options import parse
from common.data.kinds import cyclic
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint
from common.runs.teacher import read_teacher
from tests.conftest import refusal, run
from tests.engine.synthetic import CLASSES, TASKS, Lab, Small, same
from tests.machine import test_distributed

pair = test_distributed.pair

FOUR_BITS = ["--bitW", 4, "--pretrained", "no", "--num_epochs", 2, "--lr", 0.1, "--momentum", 0.9]


def teacher_of(lab: Lab, task: str) -> Path:
    lab.run(task, "--num_epochs", 1, "--lr", 0.05, "--seed", 5, job=f"teacher_{task}")
    return lab.folder / f"teacher_{task}" / "checkpoint" / "last.pt"


# distillation


@pytest.mark.parametrize("task", ["single", "digits"])
def test_a_teacher_of_weight_0_is_measured_and_changes_no_bit(task: str, lab: Lab) -> None:
    words = FOUR_BITS
    teacher = teacher_of(lab, task)
    lab.run(task, *words, job="without")
    lab.run(task, *words, "--distill", teacher, "--distill_weight", 0)
    assert all(row["train"]["Distillation_loss"] > 0 for row in lab.trainer.job.history())
    one, other = (lab.checkpoint(job=job) for job in ("without", "job"))
    assert same(one["state_dict_t"], other["state_dict_t"])
    assert one.keys() == other.keys(), "the teacher is no part of a checkpoint"
    lab.run(task, *words, "--distill", teacher, job="taught")
    assert not same(one["state_dict_t"], lab.checkpoint(job="taught")["state_dict_t"])


def test_the_teacher_is_a_constant_that_the_run_names_by_its_weights(lab: Lab) -> None:
    teacher = teacher_of(lab, "single")
    summary = lab.run("single", *FOUR_BITS, "--distill", teacher)
    digest = summary["training"]["teacher"]
    assert len(digest) == 64
    assert json.loads((lab.folder / "job" / "config.json").read_text())["teacher"] == digest
    assert lab.checkpoint()["config"]["teacher"] == digest
    network = lab.trainer.objective.distillation.teacher.args[0]
    kept = checkpoint.weights_of(checkpoint.read(teacher), teacher)
    assert same(network.state_dict(), kept), "its running statistics too"
    assert not network.training
    checkpoint.keep_weights_alone(teacher)  # as a comparison trims it: the same weights in another file
    lab.run("single", *FOUR_BITS, "--distill", teacher, job="again")
    assert lab.checkpoint(job="again")["config"]["teacher"] == digest


def test_target_images_are_taught_without_their_labels(lab: Lab) -> None:
    words = [*FOUR_BITS, "--distill", teacher_of(lab, "digits"), "--warmup_epochs", 1]
    lab.run("digits", *words)
    target = lab.train["target"]
    lab.train["target"] = dataclasses.replace(target, labels=target.labels.roll(1))
    lab.run("digits", *words, job="labels")
    assert same(lab.checkpoint()["state_dict_t"], lab.checkpoint(job="labels")["state_dict_t"])
    network, teacher = lab.trainer.objective, lab.trainer.objective.distillation
    seen: list[int] = []
    counted = dataclasses.replace(teacher, teacher=lambda x: (seen.append(len(x)), teacher.teacher(x))[1])
    network.distillation = counted
    lab.trainer.train_one_epoch(0)
    lab.trainer.train_one_epoch(1)
    assert seen == [8] * 2 + [8 + 8] * 2, "the source alone in the warm-up, both domains behind it"


def test_a_distilled_run_resumes_to_the_same_bits_and_with_no_other_teacher(lab: Lab) -> None:
    teacher = teacher_of(lab, "digits")
    words: list[Any] = [*FOUR_BITS, "--adaptation", "cdan", "--reestimate", 2]
    whole = lab.run("digits", *words, "--distill", teacher, "--save_every", 1)
    half = lab.folder / "job" / "checkpoint" / "model_1.pt"
    again = lab.run("digits", *words, "--distill", teacher, "--resume", half, job="resumed")
    assert same(lab.checkpoint()["state_dict_t"], lab.checkpoint(job="resumed")["state_dict_t"])
    assert whole["reestimated"] == again["reestimated"]
    lab.run("digits", "--num_epochs", 1, "--seed", 6, job="other")
    other = lab.folder / "other" / "checkpoint" / "last.pt"
    for further, said in (
        ([], "not with no --distill"),
        (["--distill", other], "not with --distill of the weights"),
        (["--distill", teacher, "--distill_weight", 2], "--distill_weight"),
    ):
        with pytest.raises(UserError, match=said):
            lab.run("digits", *words, *further, "--resume", half, job="refused")
    assert not (lab.folder / "refused").exists()


@pytest.mark.parametrize(
    ("task", "of_teacher", "of_run", "said"),
    [
        ("single", [], ["--select", "val"], "trained on images that --select val holds out here"),
        ("single", ["--select", "val"], ["--select", "val"], ""),
        ("single", [], [], ""),
        ("digits", ["--tgt_split", "no"], [], "trained on the test split too (--tgt_split False)"),
        ("office", ["--split_seed", 2], [], "trained on another split (--split_seed 2)"),
        ("office", ["--train_split", "no"], ["--train_split", "no"], ""),
    ],
)
def test_a_teacher_that_saw_the_test_images_is_named_as_a_source_file_is(
    task: str, of_teacher: list, of_run: list, said: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.small = True
    monkeypatch.setattr("common.runs.teacher.build_model", lambda *given, **further: Small())
    lab.test["val"] = lab.test["test"]
    scratch = ["--backbone_weights", "none"] if task == "office" else []
    lab.run(task, *scratch, *of_teacher, "--num_epochs", 1, job="teacher")
    file = lab.folder / "teacher" / "checkpoint" / "last.pt"
    words = [*scratch, *of_run, "--distill", file]
    for further in ([], ["--resume"]):
        warning = lab.run(task, *words, *further, "--num_epochs", 1 + len(further))["source_file_warning"]
        assert said in warning
        assert bool(warning) == bool(said)
        assert not said or warning.startswith(f"--distill {file}: ")
        assert warning.count("trained on") <= 1
    log = (lab.folder / "job" / "logger.log").read_text()
    assert ("its accuracy is not that of unseen images" in log) == bool(said)
    taught = lab.folder / "job" / "checkpoint" / "last.pt"
    again = lab.run(task, *scratch, *of_run, "--source_file", taught, "--num_epochs", 1, job="started")
    assert bool(again["source_file_warning"]) == bool(said), "and so is what learned from what learned from them"
    tested = lab.run(task, *scratch, *of_run, "--test_only")
    assert tested.keys() >= {"test" if task == "single" else "target"}
    recorded = json.loads((lab.folder / "job" / "test.json").read_text())["source_file_warning"]
    assert bool(recorded) == bool(said)


def test_what_is_no_teacher_is_refused_in_one_line_before_training(small_data: Path, tmp_path: Path) -> None:
    def save(name: str, model: str, config: dict[str, Any], **arguments: Any) -> Path:
        torch.manual_seed(0)
        state = build_model(model, **arguments).state_dict()
        checkpoint.save({"state_dict_t": state, "config": config}, tmp_path / name)
        return tmp_path / name

    part = build_model("resnet20_quant").state_dict()
    part.pop("logit.weight")
    checkpoint.save({"state_dict_t": part}, tmp_path / "part.pt")
    (tmp_path / "text.pt").write_text("no weights")
    words = ["--demo", "--data_dir", small_data, "--pretrained", "no", "--bitW", "4", "--job_dir", tmp_path / "job"]
    for path, said in (
        (tmp_path / "none.pt", "there is no such file"),
        (tmp_path, "a folder"),
        (tmp_path / "text.pt", "not a complete PyTorch checkpoint"),
        (tmp_path / "part.pt", "1 tensors of resnet20_quant such as logit.weight are not in it"),
        (save("deep.pt", "resnet56_quant", {"model": "resnet56_quant"}), "a file of resnet56_quant; expected one of"),
        (save("low.pt", "resnet20_quant", {"bitW": 4, "abitW": 4}), "trained with --bitW 4; expected a float"),
        (save("many.pt", "resnet20_quant", {}, num_classes=100), "number of classes"),
    ):
        line = refusal("single_domain/resnet20", *words, "--distill", path)
        assert "--distill " in line
        assert said in line
        assert str(path) in line
        assert not (tmp_path / "job").exists()
    assert "belongs to --distill FILE" in refusal("single_domain/resnet20", *words, "--distill_weight", 2)
    for flag, word in (("weight", "-1"), ("weight", "nan"), ("temperature", "0"), ("temperature", "x")):
        assert f"--distill_{flag}: expected" in refusal("single_domain/resnet20", *words, f"--distill_{flag}", word)


def test_a_teacher_that_was_trained_aligned_is_built_aligned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    aligned = build_model("resnet20_quant", stage="align", act_range=3.0).eval()
    config = {"model": "resnet20_quant", "stage": "align", "act_range": 3.0, "bitW": 32, "abitW": 32}
    checkpoint.save({"state_dict_t": aligned.state_dict(), "config": config}, tmp_path / "aligned.pt")
    x = torch.randn(2, 3, 32, 32)
    teacher, _ = read_teacher(tmp_path / "aligned.pt", parse(TASKS["single"], ["--bitW", "4", "--method", "lsq"]), 10)
    assert torch.equal(teacher(x), aligned(x))
    plain = build_model("resnet20_quant").eval()
    plain.load_state_dict(aligned.state_dict())
    assert not torch.equal(plain(x), aligned(x))


def test_the_real_command_line_teaches_and_estimates_anew(small_data: Path, tmp_path: Path) -> None:
    common = ["--demo", "--data_dir", small_data, "--num_epochs", "1", "--device", "cpu"]
    assert run("single_domain/resnet20", *common, "--bitW", 32, "--job_dir", tmp_path / "float").returncode == 0
    teacher = tmp_path / "float" / "checkpoint" / "model_best.pt"
    words = [*common, "--bitW", 2, "--method", "lsq", "--source_file", teacher, "--distill", teacher]
    done = run(
        "single_domain/resnet20", *words, "--reestimate", 2, "--schedule", "cosine", "--job_dir", tmp_path / "job"
    )
    assert done.returncode == 0, done.stderr
    assert "Distillation_loss" in (tmp_path / "job" / "logger.log").read_text()
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["training"]["schedule"] == "cosine"
    path = tmp_path / "job" / "checkpoint" / "model_reestimated.pt"
    words = [*common, "--bitW", 2, "--method", "lsq", "--source_file", path, "--test_only"]
    assert run("single_domain/resnet20", *words, "--job_dir", tmp_path / "test").returncode == 0
    test = json.loads((tmp_path / "test" / "test.json").read_text())
    assert test["test"] == summary["reestimated"]["test"]


# statistics estimated anew


@pytest.mark.parametrize("method", ["ours", "lsq"])
def test_estimating_anew_leaves_the_run_and_saves_the_network_with_other_statistics(method: str, lab: Lab) -> None:
    words = [*FOUR_BITS, "--method", method, "--select", "last"]
    plain = lab.run("single", *words, job="plain")
    summary = lab.run("single", *words, "--reestimate", 3)
    last, anew = lab.checkpoint(), lab.checkpoint("model_reestimated.pt")
    assert same(last["state_dict_t"], lab.checkpoint(job="plain")["state_dict_t"])
    assert same(last["state_dict_t"], lab.trainer.network.state_dict()), "what else is measured is measured on it"
    assert {key: summary[key] for key in plain} == plain
    assert "reestimated" not in plain
    changed = {
        key for key in last["state_dict_t"] if not torch.equal(last["state_dict_t"][key], anew["state_dict_t"][key])
    }
    assert changed
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in changed)
    assert not {"optimizer_t", "random"} & anew.keys()
    assert (summary["reestimated"]["batches"], summary["reestimated"]["epoch"]) == (3, 1)
    told = lab.run(
        "single", *words, "--test_only", "--source_file", lab.folder / "job/checkpoint/model_reestimated.pt", job="t"
    )
    assert told["test"] == summary["reestimated"]["test"]


@pytest.mark.parametrize("adaptation", ["dann", "source_only"])
def test_the_statistics_are_those_of_the_batches_of_the_epoch_after_the_last(adaptation: str, lab: Lab) -> None:
    lab.small = True
    lab.run("digits", "--num_epochs", 2, "--lr", 0.1, "--reestimate", 3, "--adaptation", adaptation)
    state = lab.checkpoint("model_reestimated.pt")["state_dict_t"]
    convolution = torch.nn.Conv2d(3, 8, 3)
    convolution.load_state_dict({what: state[f"feature.0.{what}"] for what in ("weight", "bias")})
    domains = ("source", "target") if adaptation == "dann" else ("source",)
    seen = [convolution(x).detach() for d in domains for x, _ in cyclic(lab.trainer.data.train[d], 2, 3)]
    assert len(seen) == 3 * len(domains)
    mean = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(state["feature.1.running_mean"], mean)
    torch.testing.assert_close(state["feature.1.running_var"], var)
    assert len(CLASSES) == state["classifier.weight"].shape[0]


def test_two_processes_estimate_from_the_batches_of_one(pair: Any, lab: Lab) -> None:
    lab.small = True
    words = ["--num_epochs", 2, "--lr", 0.1, "--reestimate", 3]

    def trained() -> list[Tensor]:
        lab.run("digits", *words)
        return [x for d in ("source", "target") for x, _ in cyclic(lab.trainer.data.train[d].whole(), 2, 3)]

    (status, text, seen), _ = pair(trained)
    assert status == 0, text
    assert {len(images) for images in seen} == {8}, "whole ones"
    last, anew = (lab.checkpoint(name)["state_dict_t"] for name in ("last.pt", "model_reestimated.pt"))
    network = Small()
    network.load_state_dict(last)
    outputs = [network.feature[0](images).detach() for images in seen]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    var = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(anew["feature.1.running_mean"], mean)
    torch.testing.assert_close(anew["feature.1.running_var"], var)


def test_two_processes_realign_to_the_statistics_of_one(pair: Any, lab: Lab) -> None:
    lab.small = True
    lab.run("digits", "--num_epochs", 1, "--lr", 0.1)
    words = ["--test_only", "--adapt", "bn", "--adapt_images", 12, "--adapt_prior", 4]
    alone = lab.run("digits", *words)
    (status, text, first), (_, _, second) = pair(lambda: lab.run("digits", *words))
    assert status == 0, text
    assert first["adapted"] == second["adapted"]
    for name in ("source", "target"):
        assert first["adapted"][name] == pytest.approx(alone["adapted"][name], rel=1e-5, abs=1e-6)
        assert alone["adapted"][name]["loss"] != pytest.approx(alone[name]["loss"], rel=5e-5)


# the schedule


def test_cosine_goes_from_lr_to_zero_over_the_runs_steps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.engine import trainer

    rates: list[float] = []
    monkeypatch.setattr(trainer, "set_learning_rate", lambda optimizer, lr: rates.append(lr))
    lab.small = True
    lab.run("digits", "--num_epochs", 5, "--lr", 0.3, "--schedule", "cosine", "--alpha", 10)
    expected = [0.3 * math.cos(math.pi * s / 20) ** 2 / (1 + 10 * s / 10) ** 0.75 for s in range(10)]
    assert rates == pytest.approx(expected)


def test_milestones_beside_a_cosine_are_refused(lab: Lab) -> None:
    for words in (["--lr_gamma", 0.5], ["--lr_decay_steps", 1]):
        with pytest.raises(UserError, match="belongs to --schedule steps"):
            lab.run("single", "--schedule", "cosine", *words)
