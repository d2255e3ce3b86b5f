"""How programs end on Ctrl-C and on a full disk: one line, which recommends --resume only where there is one."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from common.runs.cli import run_cleanly
from common.runs.tool import run_tool


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
