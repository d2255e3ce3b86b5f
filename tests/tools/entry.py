"""The tools' command lines, called in this process: their imports take seconds."""

import ast
import contextlib
import importlib
import io
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, refusal_line

FOLDER = REPOSITORY / "tools"


def entry(name: str) -> tuple[Any, list[Any]]:
    """What the last line of tools/NAME.py calls, and with what: ``run_tool`` or ``run_bare``, and the tool."""
    module = importlib.import_module(f"tools.{name}")
    *_, last = ast.parse((FOLDER / f"{name}.py").read_text()).body
    assert isinstance(last, ast.If), f"tools/{name}.py ends otherwise"
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    (statement,) = last.body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Call)
    names = [ast.unparse(word) for word in (statement.value.func, *statement.value.args)]
    run, *arguments = (getattr(module, word) for word in names)
    return run, arguments


def type_in(name: str, *words: object) -> tuple[int, str, str]:
    """Status, stdout and stderr of python tools/NAME.py WORDS."""
    run, arguments = entry(name)
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM), threading.excepthook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            run(*arguments)
    signal.signal(signal.SIGTERM, before[0])
    threading.excepthook = before[1]
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def refused(name: str, *words: object) -> str:
    """The one line, alone on stderr, with which a tool refuses."""
    status, _, err = type_in(name, *words)
    line = refusal_line(status, err)
    assert err == f"{line}\n", "nothing else was said"
    return line


def tools() -> list[str]:
    """Every command line in the folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if _is_program(path))


def _is_program(path: Path) -> bool:
    return '\nif __name__ == "__main__":\n' in path.read_text()


def words_of(**flags: object) -> list[str]:
    """Flags as they are typed: demo=True is --demo, bits="8,4" is --bits 8,4."""
    return [
        word
        for name, value in flags.items()
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
