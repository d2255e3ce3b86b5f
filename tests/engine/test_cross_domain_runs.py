"""Cross-domain runs through the real command line, and the engine's parts against closed forms."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from common.data.images import ImageSet
from common.data.kinds import cyclic
from common.data.tensors import TensorBatches
from common.engine.schedule import learning_rate_factor, parameter_groups, set_learning_rate
from common.models import build_model
from tests.conftest import refusal, run, same_weights, start, weights

DIGITS = "cross_domain/dann_digits/cdf_alignment"
DIGITS_CRP = "cross_domain/dann_digits/daq_crp"
TABLE_FLAGS = {
    (
        "mnist",
        "mnistm",
    ): "--img_size 28 --train_batch_size 64 --test_batch_size 100 --lr 0.0002 --momentum 0.0 --weight_decay 0.0 --print_freq 600",
    (
        "mnist",
        "svhn",
    ): "--img_size 32 --train_batch_size 100 --test_batch_size 100 --lr 0.01 --momentum 0.9 --weight_decay 0.0001 --print_freq 500",
    (
        "syndigit",
        "mnist",
    ): "--img_size 28 --train_batch_size 100 --test_batch_size 100 --lr 0.04 --momentum 0.9 --weight_decay 1e-6 --print_freq 50",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def job(tmp_path: Path, data: Path) -> list[str]:
    return ["--demo", "--data_dir", str(data), "--job_dir", str(tmp_path / "job"), "--num_epochs", "1"]


def folder_of(job: list[str]) -> Path:
    return Path(job[job.index("--job_dir") + 1])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("pair", TABLE_FLAGS)
def test_each_pair_runs_with_the_tables_flags_at_1_bit(pair: tuple[str, str], job: list[str], tmp_path: Path) -> None:
    words = f"--model MNISTmodel_quant --arch dann --lr_decay_steps [80] --lr_gamma 0.1 --alpha 10 {TABLE_FLAGS[pair]}".split()
    words += ["--src_data", pair[0], "--tgt_data", pair[1]]
    start_from = ["--pretrained", "no"]
    if pair == ("mnist", "mnistm"):
        source = tmp_path / "pretrained" / "mnist_mnistm_32bit"
        assert run(DIGITS, *job, *words, "--bitW", 32, "--job_dir", source).returncode == 0
        start_from = ["--source_dir", tmp_path / "pretrained"]
    result = run(DIGITS, *job, *words, "--bitW", 1, "--abitW", 1, *start_from)
    assert result.returncode == 0, result.stderr
    state = weights(folder_of(job) / "checkpoint" / "last.pt")
    one_bit = build_model("MNISTmodel_quant", bitW=1, abitW=1, img_size=32 if "svhn" in pair else 28)
    one_bit.load_state_dict(state)
    assert one_bit.feature[5].weight_quantizer(state["feature.5.weight"]).unique().tolist() == [-1, 1], "both signs"


@pytest.mark.parametrize(
    "method", ["dorefa", "llsq"]
)  # one after the ReLU, one with learned scales; all in test_networks
def test_another_method_trains_an_epoch(method: str, job: list[str]) -> None:
    result = run(DIGITS, *job, "--method", method, "--bitW", 4, "--abitW", 4, "--pretrained", "no")
    assert result.returncode == 0, result.stderr
    assert summary(folder_of(job))["method"] == method


def test_a_run_leaves_metrics_for_both_domains_and_pictures(job: list[str]) -> None:
    result = run(DIGITS, *job, "--bitW", 32, "--lr", 0.03, "--num_epochs", 2)
    assert result.returncode == 0, result.stderr
    folder = folder_of(job)
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(row["source"]) == {"prec1", "prec5", "prec1_domain", "loss"}
    assert set(row["target"]) == {"prec1", "prec5", "prec1_domain", "loss", "entropy", "im", "snd"}
    state = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    published = {"state_dict_t", "tgt_best_prec1", "tgt_best_prec5", "tgt_best_prec1_domain", "src_best_prec1"}
    assert published | {"src_best_prec5", "src_best_prec1_domain", "optimizer_t", "scheduler_t", "epoch"} <= set(state)
    result_of = summary(folder)
    assert torch.tensor(result_of["confusion"]["last"]).sum() == 1080
    assert set(result_of["per_class"]["best"]) == set("0123456789")
    assert "demo mnist -> mnistm" in result.stdout
    assert "which reads target labels" in result.stdout
    for picture in ("features.png", "confusion.png"):
        assert (folder / picture).stat().st_size > 10_000


def test_a_killed_run_resumes_to_bit_identical_weights(job: list[str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = [*job, "--bitW", 4, "--pretrained", "no", "--num_epochs", 4, "--lr", 0.03, "--epoch_length", "max"]
    assert run(DIGITS_CRP, *common, "--job_dir", whole).returncode == 0
    process = start(DIGITS_CRP, *common, "--job_dir", parts)
    while not (parts / "checkpoint" / "last.pt").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert run(DIGITS_CRP, *common, "--job_dir", parts, "--resume").returncode == 0
    assert same_weights(whole / "checkpoint/last.pt", parts / "checkpoint/last.pt")
    states = [torch.load(folder / "checkpoint/last.pt", weights_only=True)["crp"] for folder in (whole, parts)]
    assert any(value.abs().sum() > 0 for value in states[0].values())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()


def _permute_target_labels(data: Path) -> None:
    """Rotate MNIST-M's training labels, so that a loss that read them would change."""
    path = next((data / "demo").rglob("mnist_m_train.pt"))
    images, labels = torch.load(path, weights_only=True)
    torch.save((images, labels.roll(1)), path)


def test_target_labels_never_touch_the_training(job: list[str], tmp_path: Path) -> None:
    own = tmp_path / "data"
    common = [*job, "--data_dir", own, "--bitW", 32, "--lr", 0.03]
    assert run(DIGITS, *common, "--job_dir", tmp_path / "true").returncode == 0
    _permute_target_labels(own)
    assert run(DIGITS, *common, "--job_dir", tmp_path / "permuted").returncode == 0
    assert same_weights(tmp_path / "true/checkpoint/last.pt", tmp_path / "permuted/checkpoint/last.pt")


def test_adaptation_waits_for_the_warm_up(job: list[str]) -> None:
    assert (
        run(DIGITS_CRP, *job, "--num_epochs", 2, "--warmup_epochs", 1, "--bitW", 4, "--pretrained", "no").returncode
        == 0
    )
    first, second = (json.loads(line) for line in (folder_of(job) / "metrics.jsonl").read_text().splitlines())
    assert "Target_domain_loss" not in first["train"]
    assert "Target_domain_loss" in second["train"]
    assert not any(name.startswith("target") for name in first["relation_shift"]["layers"])
    assert any(name.startswith("target") for name in second["relation_shift"]["layers"])
    assert "fewer than --num_epochs 1" in refusal(DIGITS, *job, "--warmup_epochs", 1)


def test_source_only_ignores_the_target(job: list[str]) -> None:
    result = run(DIGITS, *job, "--bitW", 32, "--src_only_flag", "--lr", 0.03)
    assert result.returncode == 0, result.stderr
    assert "Target_domain_loss" not in result.stderr
    assert summary(folder_of(job))["source_only"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--src_data", "mnist", "--tgt_data", "mnist"], "--src_data and --tgt_data are both mnist"),
        (["--tgt_data", "usps"], "usps"),
        (["--train_batch_size", "5000"], "5000 is larger than the 720 images"),
        (["--img_size", "8"], "--img_size: expected a side from 16 to 256, not '8'"),
        (["--select", "test"], "--select"),
        (["--alpha", "-1"], "--alpha"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], message: str, job: list[str]) -> None:
    assert message in refusal(DIGITS, *job, "--bitW", 32, *arguments)


def test_crp_is_refused_where_nothing_is_aligned(job: list[str]) -> None:
    line = refusal(DIGITS_CRP, *job, "--method", "lsq", "--bitW", 4, "--pretrained", "no")
    assert "belongs to quantized activations of ours" in line
    assert "--abitW 32" in refusal(DIGITS_CRP, *job, "--bitW", 32, "--crp_weight", 2)
    result = run(DIGITS_CRP, *job, "--bitW", 32)
    assert result.returncode == 0, result.stderr
    assert "without relation preservation" in result.stderr


def test_crp_logs_its_strength_at_another_batch_size(job: list[str]) -> None:
    result = run(DIGITS_CRP, *job, "--bitW", 4, "--pretrained", "no", "--train_batch_size", 56)
    assert "--crp_weight 0.25 would keep the strength" in result.stderr, result.stderr


def _batches(count: int, size: int, domain: str) -> TensorBatches:
    images = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1)
    labels = torch.arange(count) % 2
    image_set = ImageSet(images, labels, ("0", "1"), domain)
    return TensorBatches(
        image_set=image_set, batch_size=size, mean=0, std=1, shuffle=True, drop_last=True, domain=domain
    )


def test_cyclic_batches_start_afresh_each_epoch_in_another_order() -> None:
    batches = _batches(10, 3, "source")
    first = [images.flatten().tolist() for images, _ in cyclic(batches, 0, 8)]
    assert len(first) == 8
    assert first == [images.flatten().tolist() for images, _ in cyclic(batches, 0, 8)]
    assert first[:3] != first[3:6]
    assert first != [images.flatten().tolist() for images, _ in cyclic(batches, 1, 8)]
    assert list(cyclic(batches, 0, 0)) == []


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 1.0), (0.5, 1 / 6**0.75), (1.0, 1 / 11**0.75)])
def test_annealed_learning_rate_at_three_points(progress: float, factor: float) -> None:
    assert learning_rate_factor(0, progress, [], 0.1, alpha=10) == pytest.approx(factor)


def test_milestones_multiply_by_gamma_from_their_epoch_on() -> None:
    factors = [learning_rate_factor(epoch, 0, [2, 4], 0.1) for epoch in range(6)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_parameter_groups_slow_the_backbone_and_spare_learned_scales_the_decay() -> None:
    model = build_model("resnet50_dann", method="lsq", bitW=4, abitW=4)
    groups = parameter_groups(model, 5e-4, model.backbone(), 0.1)
    optimizer = torch.optim.SGD(groups, 0.2, 0.9)
    set_learning_rate(optimizer, 0.2)
    by_id = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(by_id) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        group = by_id[id(parameter)]
        scale = name.endswith("quantizer.scale")
        assert group["weight_decay"] == (0 if scale else 5e-4), name
        if not scale:
            assert group["lr"] == pytest.approx(0.02 if name.startswith("feature.") else 0.2), name
