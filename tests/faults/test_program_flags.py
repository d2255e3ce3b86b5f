"""Every flag of every program with every kind of junk: one line, status 2, before anything is read or written."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from common.config.groups import UNUSED
from common.config.options import all_flags
from common.flags import Flag
from tests.faults.harness import TASKS, refused, somewhere

JUNK = {"wrong type": "x", "empty": "", "negative": "-1", "huge": "9" * 30, "nan": "nan"}
ELSEWHERE = {"data_dir": "nowhere", "download": "False", "job_dir": "job"}  # so that what is accepted ends there


def is_taken(flag: Flag, word: str) -> bool:
    """Whether the word is one of the flag's values, such as any name of a file; the run then ends without its data."""
    try:
        return (flag.read_all([word]) if flag.read_all else flag.take(word)) is not None
    except (ArgumentTypeError, ValueError):
        return False


@pytest.mark.parametrize(
    ("program", "name"), [(program, name) for program, task in TASKS.items() for name in (*all_flags(task), *UNUSED)]
)
def test_junk_behind_a_flag_is_refused(program: str, name: str, tmp_path: Path) -> None:
    flag = all_flags(TASKS[program]).get(name)
    others = [f"--{other}={word}" for other, word in ELSEWHERE.items() if other != name]
    with somewhere(tmp_path / "here"):
        for word in JUNK.values():
            line = refused(program, *others, f"--{name}={word}")
            assert flag is None or is_taken(flag, word) or f"--{name}" in line or f"--{flag.also}" in line, line
