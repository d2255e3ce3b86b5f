"""A run's folder and files: what is brought along on --resume, who holds it, and what reaches its log."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.admm.crp import CRP
from common.config.naming import name_files
from common.config.options import parse
from common.config.tasks import Task
from common.errors import UserError
from common.machine.device import random_state
from common.models import build_model
from common.runs import checkpoint
from common.runs.folder import RunFolder
from common.runs.job import Job

TASK = Task("resnet20", Path("/nonexistent"), "resnet20_quant", stem="res20")


def job_in(folder: Path, *words: str) -> Job:
    return Job(name_files(parse(TASK, ["--job_dir", str(folder), "--bitW", "4", *words])))


def content_of(job: Job, epoch: int, best: int) -> dict[str, Any]:
    """A checkpoint after ``epoch`` epochs, the best of which had index ``best``."""
    config = {**job.options.flat(), "task": TASK.name}
    state = {
        "state_dict_t": {"w": torch.tensor(float(epoch))},
        "optimizer_t": {},
        "scheduler_t": {"last_epoch": epoch - 1},
        "random": random_state(),
    }
    means = {"test": {"loss": 1.0, "prec1": 50.0, "prec5": 90.0}}
    state |= {"best": {"epoch": best, "judged": 50.0, **means}, "peaks": means, "pretrained": False}
    return {**state, "epoch": epoch, "config": config}


@pytest.mark.parametrize(("beside", "found"), [(2, True), (1, False), (None, False)])
def test_a_resume_from_elsewhere_brings_the_best_weights_or_chooses_the_best_anew(
    beside: int | None, found: bool, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "model_3.pt"
    job = job_in(tmp_path / "job", "--resume", str(path))
    checkpoint.save(content_of(job, 3, best=1), path)
    if beside is not None:
        checkpoint.save(content_of(job, beside, best=beside - 1), elsewhere / "model_best.pt")
    content = job.restore(["test"])
    job.begin()
    job.close()
    assert content is not None
    assert (content["best"] is not None) == job.best.exists() == found
    said = "its best epoch's weights are not beside it" in (tmp_path / "job" / "logger.log").read_text()
    assert said == (not found)
    assert not found or checkpoint.read(job.best)["epoch"] == 2


def test_the_resumed_checkpoint_itself_may_be_the_best(tmp_path: Path) -> None:
    path = tmp_path / "model_3.pt"
    job = job_in(tmp_path / "job", "--resume", str(path))
    checkpoint.save(content_of(job, 3, best=2), path)
    assert job.restore(["test"]) is not None
    job.begin()
    job.close()
    assert checkpoint.read(job.best)["state_dict_t"]["w"] == 3


def test_a_best_file_of_a_later_epoch_is_not_taken_for_that_of_the_checkpoint(tmp_path: Path) -> None:
    job = job_in(tmp_path / "job", "--reset")
    job.begin()
    for epoch, name in ((2, "model_2.pt"), (5, "model_best.pt"), (5, "last.pt")):
        checkpoint.save(content_of(job, epoch, best=0 if epoch == 2 else 4), job.checkpoints / name)
    job.close()
    again = job_in(tmp_path / "job", "--resume", str(job.checkpoints / "model_2.pt"))
    content = again.restore(["test"])
    again.close()
    assert content is not None
    assert content["best"] is None


def test_the_restart_of_crp_reaches_the_runs_log(tmp_path: Path) -> None:
    sites = build_model("MNISTmodel_quant", bitW=4, abitW=4).crp_sites()
    job = job_in(tmp_path / "job")
    job.begin()
    CRP(sites, batch_size=8).load_state_dict(CRP(sites, batch_size=4).state_dict())
    job.close()
    assert "it restarts at zero" in (tmp_path / "job" / "logger.log").read_text()


def test_a_folder_is_held_by_one_process_and_a_refused_one_is_free_again(tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "job")
    with pytest.raises(UserError, match="another run is writing there"):
        RunFolder(tmp_path / "job")
    held.close()
    assert not (tmp_path / "job").exists()
    RunFolder(tmp_path / "a" / "b").close()
    assert list(tmp_path.iterdir()) == [], "folders above it too, as far as it made them"


@pytest.mark.parametrize("kind", ["file", "below a file", "loop", "too long", "device"])
def test_a_folder_that_cannot_be_is_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    paths = {
        "file": "file",
        "below a file": "file/job",
        "loop": "loop/job",
        "too long": "x" * 300,
        "device": "/dev/null",
    }
    with pytest.raises(UserError, match="--job_dir") as raised:
        RunFolder(tmp_path / paths[kind])
    assert "\n" not in str(raised.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "loop"]
