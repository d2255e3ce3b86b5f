"""The command alignq reaches every tool and every task's program, imports none of them itself, and refuses in a line."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.command import TOOLS, as_typed, help_text, program, tasks
from common.errors import UserError
from tests.conftest import REPOSITORY
from tools.runs.programs import main_of, programs


def alignq(*words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from common.command import main; main()", *words]
    return subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)


def test_help_names_every_command_and_task_and_imports_no_torch() -> None:
    source = "import sys\nfrom common.command import main\ntry: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == help_text()
    assert all(f"\n  {name} " in result.stdout for name in ["train", *TOOLS])
    assert all(f" {name}\n" in result.stdout for name in tasks())


def test_every_command_and_task_has_its_program() -> None:
    assert all(Path(program([name])[0]).is_file() for name in TOOLS)
    of_folders = {main_of(task) for variants in programs().values() for task in variants}
    assert set(tasks().values()) == of_folders
    assert program(["train", "dann_digits", "--demo"]) == [*program(["train", "dann_digits/daq_crp"]), "--demo"]


def test_a_program_gets_its_words_from_any_folder(tmp_path: Path) -> None:
    result = alignq("train", "resnet20", "--bitW", "0", cwd=tmp_path)
    assert (result.returncode, "--bitW" in result.stderr) == (2, True)


def test_what_a_run_says_to_type_next_runs_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for folder in (tmp_path, REPOSITORY / "single_domain" / "resnet20"):
        monkeypatch.chdir(folder)
        python, file = as_typed("export")
        assert (python, Path(file).resolve()) == ("python", REPOSITORY / "tools" / "export.py")
    (tmp_path / "alignq").touch(0o755)
    assert as_typed("export") == ["alignq", "export"]


@pytest.mark.parametrize("words", [["no-such"], ["train"], ["train", "no-such"]])
def test_what_there_is_not_is_refused_in_a_line(words: list[str]) -> None:
    with pytest.raises(UserError, match="expected"):
        program(words)
    result = alignq(*words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
