"""How programs end on Ctrl-C and on a full disk: one line, which recommends --resume only where there is one."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.runs.cli import DEFECT, run_cleanly
from common.runs.tool import run_tool
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM), threading.excepthook
    yield
    signal.signal(signal.SIGTERM, before[0])
    threading.excepthook = before[1]


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (run_cleanly, "program: interrupted; the same command with --resume continues from the last finished epoch"),
        (run_tool, "program: interrupted"),
    ],
)
def test_ctrl_c_is_one_line_and_status_130(
    end: Callable, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as error:
        end(interrupted)
    assert error.value.code == 130
    assert capsys.readouterr().err.strip() == line


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "out.pt")


@pytest.mark.parametrize(("end", "resumes"), [(run_cleanly, True), (run_tool, False)])
def test_a_full_disk_is_one_line_and_status_2(
    end: Callable, resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as error:
        end(full_disk)
    (line,) = capsys.readouterr().err.splitlines()
    assert error.value.code == 2
    assert line.startswith("program: error: No space left on device: out.pt")
    assert ("--resume" in line) == resumes


@pytest.mark.parametrize(("reads", "status"), [("stdout", 1), ("stderr", 1), ("a worker", DEFECT)])
def test_only_a_reader_that_has_gone_ends_a_program_silently(reads: str, status: int, tmp_path: Path) -> None:
    """A broken pipe between processes of ours is a fault like another, and says where."""
    script = (
        "import sys\nfrom common.runs.cli import run_cleanly\n"
        "def program():\n"
        "    if sys.argv[1] == 'a worker':\n"
        "        raise BrokenPipeError(32, 'Broken pipe')\n"
        "    while True:\n"
        "        print('a line', file=getattr(sys, sys.argv[1]), flush=True)\n"
        "run_cleanly(program)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, reads],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    streams = {"stdout": process.stdout, "stderr": process.stderr}
    if reads in streams:
        assert streams[reads].readline() == "a line\n"
        streams.pop(reads).close()
    said = "".join(stream.read() for stream in streams.values())
    assert process.wait() == status
    assert ("defect: BrokenPipeError" in said) == (status == DEFECT)
    assert "Traceback" not in said
