"""What --resume goes on with: the same run and no other, and epochs that are left."""

from pathlib import Path
from typing import Any

import pytest

from common.config.options import parse
from common.engine.trainer import Trainer
from common.errors import UserError
from common.runs.progress import SAME_RUN
from tests.engine.synthetic import TASKS, Lab
from tests.engine.test_foreign_runs import NETWORK


@pytest.mark.parametrize(
    ("task", "flag", "made", "other"),
    [
        ("single", "val_fraction", 0.1, 0.2),
        ("single", "split_seed", 1, 2),
        ("office", "train_split", True, False),
        ("office", "split_seed", 1, 2),
        ("digits", "src_split", True, False),
        ("digits", "tgt_split", False, True),
    ],
)
def test_a_run_that_would_train_on_other_images_is_not_resumed(
    task: str, flag: str, made: Any, other: Any, lab: Lab
) -> None:
    lab.small = True
    words = ["--num_epochs", 1, *(["--backbone_weights", "none"] if task == "office" else [])]
    lab.run(task, *words, f"--{flag}", made)
    with pytest.raises(UserError, match=f"it was made with --{flag} {made}, not {other}$"):
        lab.run(task, *words, "--num_epochs", 2, f"--{flag}", other, "--resume")
    lab.run(task, *words, "--num_epochs", 2, f"--{flag}", made, "--resume")


def test_every_flag_that_a_run_shares_is_one_of_some_program() -> None:
    known = {name for one in TASKS.values() for name in parse(one, []).flat()}
    assert set(SAME_RUN) <= known


def test_fewer_epochs_than_are_trained_is_one_line_and_as_many_write_the_same_results(lab: Lab) -> None:
    """They would be called those of an epoch that they are not of."""
    lab.small = True
    whole = lab.run("digits", "--num_epochs", 3, "--lr", 0.1)
    files = [path for path in (lab.folder / "job").rglob("*.json*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(UserError, match=r"it has trained 3 epochs, more than --num_epochs 2; .* above 3 goes on"):
        lab.run("digits", "--num_epochs", 2, "--lr", 0.1, "--resume")
    assert {path: path.read_bytes() for path in files} == before
    assert lab.run("digits", "--num_epochs", 3, "--lr", 0.1, "--resume") == whole


@pytest.mark.parametrize("gone", [False, True])
def test_a_checkpoint_says_of_which_file_its_network_was_made(
    gone: bool, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    words = ["--model", f"{file}:net", "--pretrained", "no", "--num_epochs", 2]
    file.write_text(NETWORK)
    lab.run("single", *words, job="unchanged")
    train = Trainer.train_one_epoch

    def edited(self: Trainer, epoch: int) -> dict[str, Any]:
        if gone:
            file.unlink(missing_ok=True)
        else:
            file.write_text(f"{NETWORK}\n# edited at epoch {epoch}\n")
        return train(self, epoch)

    monkeypatch.setattr(Trainer, "train_one_epoch", edited)
    lab.run("single", *words)
    digests = [lab.checkpoint(job=job)["config"]["file_digest"] for job in ("job", "unchanged")]
    assert digests[0] == digests[1]
