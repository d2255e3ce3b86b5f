"""A reader that has seen enough: the program ends quietly, and what it was doing can go on."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run
from tests.faults.conftest import RESNET20, TRAIN


def through_head(words: list[str], cwd: Path, lines: int) -> subprocess.CompletedProcess:
    command = f"{shlex.join([sys.executable, *words])} | head -{lines}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_a_run_into_a_closed_pipe_ends_quietly_and_resumes(world: Path, tmp_path: Path) -> None:
    Path(tmp_path / "data").symlink_to(world / "data")
    words = [*TRAIN, "--num_epochs=2", f"--job_dir={tmp_path / 'job'}", "--resume"]
    result = through_head([str(REPOSITORY / RESNET20 / "main.py"), *words], tmp_path, 1)
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert len(result.stdout.splitlines()) == 1
    again = run(RESNET20, *words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("words", [["sizes", "--bits=8"], ["report", "--help"], ["doctor"]])
def test_a_tool_into_a_closed_pipe_ends_quietly(words: list[str], tmp_path: Path) -> None:
    result = through_head([str(REPOSITORY / "tools" / f"{words[0]}.py"), *words[1:]], tmp_path, 0)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert "defect" not in result.stderr
