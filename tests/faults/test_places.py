"""Places that a file or a folder cannot be written to: refused before work begins, and what lies there stays."""

import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.runs.annotations import NewFile, NewFolder
from tests.faults.conftest import RESNET20, TRAIN
from tests.faults.harness import TASKS, refused, somewhere
from tests.tools.test_arguments import commands

FOLDER, FILE = "a folder", "a file"
PLACES: dict[str, tuple[str, Callable[[], object]]] = {  # what is typed, and what is there
    FILE: ("thesis.tex", lambda: None),
    FOLDER: ("own", lambda: Path("own").mkdir()),
    "below a file": ("thesis.tex/new", lambda: None),
    "a loop": ("loop/new", lambda: Path("loop").symlink_to("loop")),
    "a link to nowhere": ("link/new", lambda: Path("link").symlink_to("nowhere")),
    "a device": ("/dev/null", lambda: None),
    "below a device": ("/dev/null/new", lambda: None),
    "a fifo": ("fifo", lambda: os.mkfifo("fifo")),
    "too long a name": ("x" * 300, lambda: None),
    "too long a path": ("/".join(["x" * 200] * 30), lambda: None),
    "not for writing": ("/proc/new", lambda: None),
    "another kind of file system": ("/sys/kernel/new", lambda: None),
    "two lines": ("a\nb", lambda: None),
    "colour": ("a\x1b[31m", lambda: None),
    "no bytes": ("a\udcff", lambda: None),
}


def outs() -> list[tuple[str, str, tuple[str, ...], bool]]:
    """Every flag that names what is written: program, flag, the words before it, whether it is a folder."""
    found = [(program, "job_dir", ("--data_dir=nowhere", "--download=False"), True) for program in TASKS]
    for command in commands():
        for name, hint in inspect.get_annotations(command.tool).items():
            if set(str(hint).split(" | ")) & {str(NewFile), str(NewFolder)}:
                found.append((command.program, name, command.words, str(NewFolder) in str(hint)))
    return found


@pytest.mark.parametrize(
    ("program", "flag", "words", "place"),
    [
        (program, flag, words, place)
        for program, flag, words, is_folder in outs()
        for place in PLACES
        if place != (FOLDER if is_folder else FILE)
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_place_that_cannot_be_written_is_refused(
    program: str, flag: str, words: tuple[str, ...], place: str, tmp_path: Path
) -> None:
    with somewhere(tmp_path / "here"):
        typed, make = PLACES[place]
        make()
        assert f"--{flag}" in refused(program, *words, f"--{flag}={typed}")


TAKEN = {
    "a file": lambda path: path.write_text("foreign"),
    "a folder": lambda path: (path.mkdir(), (path / "foreign").write_text("foreign")),
    "a fifo": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/full"),
    "a loop": lambda path: path.symlink_to(path),
}
IN_A_JOB = ("checkpoint", "run", ".lock", "logger.log", "metrics.jsonl", "config.json", "config.txt", "summary.json")
FITS = {("checkpoint", "a folder"), ("run", "a folder"), *((name, "a file") for name in IN_A_JOB[2:])}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in IN_A_JOB for kind in TAKEN if (name, kind) not in FITS]
)
def test_what_stands_where_a_job_writes_is_refused_before_training(
    name: str, kind: str, world: Path, tmp_path: Path
) -> None:
    with somewhere(tmp_path / "here") as here:
        Path("data").symlink_to(world / "data")
        shutil.copytree(world / "job", "job")
        path = here / "job" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        TAKEN[kind](path)
        line = refused(RESNET20, "--resume", *TRAIN, "--num_epochs=3", "--job_dir=job")
        assert "job" in line, line
