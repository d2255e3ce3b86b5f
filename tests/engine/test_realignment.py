"""--adapt and --shift through the real programs: both accuracies are recorded, and the network stays what it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.adaptation import offsets
from common.adaptation.realign import PRIOR
from common.config.tasks import Task
from common.data import cifar10c
from common.data.corruptions import STRENGTHS
from common.data.images import ImageSet, drawn
from common.data.kinds.cifar10 import shift_kind
from common.data.tensors import TensorBatches
from common.deploy.restore import restore
from common.engine.program import run
from common.engine.trainer import Trainer
from common.measure.statistics import norms
from common.runs import checkpoint
from tests.conftest import REPOSITORY, refusal, same_weights
from tests.conftest import run as run_program
from tests.data.test_cifar10c import write

RESNET20 = "single_domain/resnet20"
TASK = Task("resnet20", REPOSITORY / RESNET20, "resnet20_quant", stem="res20")
ADAPT = ["--adapt", "bn", "--adapt_images", "16"]


def words(small_data: Path, folder: Path, *more: str) -> list[str]:
    base = ["--demo", "--data_dir", small_data, "--job_dir", folder, "--num_epochs", 1, "--device", "cpu"]
    return [str(word) for word in (*base, "--bitW", 4, "--pretrained", "no", "--shift_images", 20, *more)]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "job"
    result = run_program(RESNET20, *words(small_data, folder, "--shift", *ADAPT))
    assert result.returncode == 0, result.stderr
    assert "demo test top-1, re-aligned by 16 training images: " in result.stderr
    assert "demo test top-1 under noise, re-aligned: " in result.stderr
    return folder


def test_both_accuracies_are_recorded(job: Path) -> None:
    summary = read(job / "summary.json")
    shift, adapted = summary["shift"], summary["shift"]["adapted"]
    assert (adapted["images"], adapted["prior"]) == (16, PRIOR)
    for values in (shift, adapted):
        assert all(len(values[kind]) == 3 for kind in STRENGTHS)
        every = [value for kind in STRENGTHS for value in values[kind]]
        assert values["mean"] == pytest.approx(sum(every) / len(every))
    assert {"images", "prior", "test"} == summary["adapted"].keys()
    assert 0 <= summary["adapted"]["test"]["prec1"] <= 100


def test_checkpoints_know_the_offsets_of_their_own_network(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch is the best here; what either file says is what its own network gives on the run's images."""
    judge, measure, seen = Trainer._judge, offsets.measure, []
    monkeypatch.setattr(Trainer, "_judge", lambda self, row, epoch: judge(self, row, epoch) and epoch == 0)
    monkeypatch.setattr(offsets, "measure", lambda network, images: seen.append(images) or measure(network, images))
    run(TASK, [*words(small_data, tmp_path / "job"), "--num_epochs", "2"])
    networks = [restore(tmp_path / "job" / "checkpoint" / f"{name}.pt")[0] for name in ("model_best", "last")]
    for network in networks:
        for name, values in measure(network, seen[0]).items():
            torch.testing.assert_close(offsets.of(network)[name], values, rtol=1e-4, atol=1e-5)
    first, second = map(offsets.of, networks)
    assert first.keys() == second.keys() == norms(networks[0]).keys()
    assert all(not torch.equal(values, second[name]) for name, values in first.items())


def test_realigning_changes_nothing_of_the_run_itself(job: Path, small_data: Path, tmp_path: Path) -> None:
    run(TASK, words(small_data, tmp_path / "plain", "--shift"))
    plain, other = (read(folder / "summary.json") for folder in (tmp_path / "plain", job))
    assert same_weights(tmp_path / "plain" / "checkpoint" / "last.pt", job / "checkpoint" / "last.pt")
    del other["adapted"], other["shift"]["adapted"]
    assert plain == other


def test_a_finished_run_is_evaluated_later_and_repeats_to_the_bit(job: Path, small_data: Path) -> None:
    found = [run(TASK, words(small_data, job, "--test_only", "--shift", *ADAPT)) for _ in range(2)]
    assert found[0]["adapted"] == found[1]["adapted"]
    assert found[0]["shift"] == found[1]["shift"]
    assert read(job / "test.json")["shift"]["adapted"] == found[0]["shift"]["adapted"]


def test_a_later_evaluation_has_the_offsets_of_the_file_and_measures_none(
    job: Path, small_data: Path, tmp_path: Path
) -> None:
    """The images of a later run may be another domain's: by offsets of these they would move nothing."""
    content = checkpoint.read(job / "checkpoint" / "model_best.pt")
    found = {}
    for name, change in (("own", 0.0), ("others", 0.3)):
        moved = {layer: values + change for layer, values in content[offsets.KEY].items()}
        checkpoint.save({**content, offsets.KEY: moved}, tmp_path / f"{name}.pt")
        more = ("--test_only", "--source_file", str(tmp_path / f"{name}.pt"), *ADAPT)
        found[name] = run(TASK, words(small_data, tmp_path / name, *more))["adapted"]["test"]
    assert found["own"] == read(job / "summary.json")["adapted"]["test"]
    assert found["others"]["loss"] != pytest.approx(found["own"]["loss"], rel=1e-3)


def test_labels_have_no_part_in_it(job: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels for all training images give the same accuracies."""
    expected = run(TASK, words(small_data, job, "--test_only", *ADAPT))["adapted"]
    made = TensorBatches.__init__

    def scrambled(self: TensorBatches, *, image_set: ImageSet, **further: Any) -> None:
        if "train" in image_set.name:
            labels = (image_set.labels * 7 + 3) % 10
            image_set = ImageSet(image_set.images, labels, image_set.classes, image_set.name)
        made(self, image_set=image_set, **further)

    monkeypatch.setattr(TensorBatches, "__init__", scrambled)
    assert run(TASK, words(small_data, job, "--test_only", *ADAPT))["adapted"] == expected


def test_both_domains_are_realigned_each_by_its_own(demo_data: Any, tmp_path: Path) -> None:
    program = "cross_domain/dann_digits/cdf_alignment"
    flags = f"--demo --data_dir {demo_data()} --job_dir {tmp_path / 'job'} --num_epochs 1 --src_only_flag --bitW 4"
    result = run_program(program, *f"{flags} --pretrained no --src_data mnist --tgt_data mnistm".split(), *ADAPT)
    assert result.returncode == 0, result.stderr
    adapted = read(tmp_path / "job" / "summary.json")["adapted"]
    assert {"images", "prior", "source", "target"} == adapted.keys()
    assert "demo target test top-1, re-aligned by 16 training images: " in result.stderr


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_data: Path) -> list[str]:
    """Flags of a run whose data pass for CIFAR-10's, with CIFAR-10-C of 10 images beside them."""
    monkeypatch.setattr(cifar10c, "IMAGES", 10)
    root = tmp_path / "data"
    root.mkdir()
    (root / "cifar10").symlink_to(small_data / "demo" / "cifar10")
    write(root / "cifar10c", 10)
    return ["--data_dir", str(root), "--job_dir", str(tmp_path / "job"), "--num_epochs", "1", "--device", "cpu"]


def test_cifar10c_gives_the_mean_corruption_error_over_fifteen_kinds(published: list[str]) -> None:
    words = [*published, "--bitW", "32", "--shift", "cifar10c", "--adapt", "bn", "--adapt_images", "4"]
    shift = run(TASK, [*words, "--shift_images", "0"])["shift"]
    assert shift["images"] == 6, "those adapted to are not tested on"
    for values in (shift, shift["adapted"]):
        assert all(len(values[kind]) == 5 for kind in (*cifar10c.KINDS, *cifar10c.EXTRA))
        errors = [100 - value for kind in cifar10c.KINDS for value in values[kind]]
        assert values["mce"] == pytest.approx(sum(errors) / 75)
    plain = run(TASK, [*published, "--bitW", "32", "--shift", "cifar10c", "--test_only"])["shift"]
    assert plain["images"] == 10
    assert "adapted" not in plain


def test_what_shift_means() -> None:
    assert [shift_kind(word) for word in ("true", "False", "own", "none", "cifar10c")] == [
        *("own", "none", "own", "none", "cifar10c")
    ]
    assert refusal(RESNET20, "--shift", "fog").endswith("expected true or false, own, none or cifar10c, not 'fog'")
    assert "--shift cifar10c --demo" in refusal(RESNET20, "--demo", "--shift", "cifar10c", "--bitW", "32")
    assert "no CIFAR-10-C in" in refusal(RESNET20, "--shift", "cifar10c", "--bitW", "32", "--data_dir", "nowhere")
    few = ["--adapt", "bn", "--adapt_images", "3", "--adapt_prior", "0"]
    assert "3 images without a prior" in refusal(RESNET20, "--demo", "--bitW", "32", *few)
    many = ["--shift", "cifar10c", "--adapt", "bn", "--adapt_images", "10000"]
    assert "--adapt_images 10000: expected fewer" in refusal(RESNET20, "--bitW", "32", *many)


def test_images_are_drawn_by_their_number_alone() -> None:
    assert torch.equal(drawn(5, 100), drawn(5, 100))
    assert len(drawn(500, 100)) == 100
    assert drawn(10, 100).unique().tolist() == drawn(10, 100).tolist()
