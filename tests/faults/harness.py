"""Bad input for the real command lines, in this process, and what must hold behind it."""

import contextlib
import io
import os
import re
import runpy
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from tests.conftest import REPOSITORY
from tests.tools.entry import entry
from tools.runs.programs import main_of, programs

PATIENCE = 30  # seconds, and nothing here takes one
MOST_READ = 2**24  # bytes of a file that a snapshot compares
LOGGED = re.compile(r"\d\d/\d\d \d\d:\d\d:\d\d [AP]M \| |Epoch\[|\w+: [\d.]+ \(|Prec@|LR = |epoch \d+: +\d+%|\r|$")
TASKS = {
    main_of(task).parent.relative_to(REPOSITORY).as_posix(): task for found in programs().values() for task in found
}


class Waiting(BaseException):
    """A program that waits for what never comes."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on stderr, those of the run's own log apart."""
        return [line for line in self.err.splitlines() if not LOGGED.match(line)]


def type_in(program: str, *words: object) -> Ended:
    """What ``python PROGRAM/main.py WORDS``, or ``python tools/PROGRAM.py WORDS``, ends with."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM), threading.excepthook
    with pytest.MonkeyPatch.context() as patch, _patience(), pytest.raises(SystemExit) as end:  # noqa: PT012
        patch.setattr(sys, "argv", [f"{program}.py", *map(str, words)])
        patch.setattr(os, "_exit", _leave)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if program in TASKS:
                runpy.run_path(str(main_of(TASKS[program])), run_name="__main__")
            run, arguments = entry(program)
            run(*arguments)
    signal.signal(signal.SIGTERM, before[0])
    threading.excepthook = before[1]
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())


def _leave(status: int) -> NoReturn:
    raise SystemExit(status)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def give_up(signum: int, frame: Any) -> NoReturn:
        raise Waiting

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(program: str, *words: object) -> str:
    """The one line with which it refuses; whatever lies in the working directory is as it was.

    A defect, of status 70, is no refusal.
    """
    before = snapshot(Path())
    ended = type_in(program, *words)
    assert ended.status == 2, f"{program} {words}: status {ended.status}: {ended.err[-2000:]}"
    assert len(ended.said) == 1, f"{program} {words}: {ended.err}"
    (line,) = ended.said
    assert ".py: error: " in line, line
    assert len(line) < 1200
    assert "Traceback" not in ended.out
    assert snapshot(Path()) == before, f"{program} {words}: {line}"
    return line


def snapshot(folder: Path) -> dict[str, Any]:
    """All that is in a folder, by name: its kind and mode, and the bytes of files."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            how = path.lstat()
            content: Any = None
            if stat.S_ISLNK(how.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(how.st_mode):
                content = path.read_bytes() if how.st_size < MOST_READ else how.st_mtime_ns
            found[str(path)] = how.st_mode, content
    return found


@contextlib.contextmanager
def somewhere(folder: Path) -> Iterator[Path]:
    """A working directory with files of somebody else's in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "thesis.tex").write_text("precious")
    (folder / ".notes.1.tmp").write_text("hidden, precious")
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / ".last.pt.7.tmp").write_text("of another run, being written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tempfile, "tempdir", str(folder.parent))
        yield folder
