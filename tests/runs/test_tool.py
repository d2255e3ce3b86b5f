"""A tool's command line: values arrive as annotated, and what is wrong is said in one line before the tool is called."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from common.errors import UserError
from common.flags import Flag, number, positive
from common.runs.annotations import Count, NewFile, NewFolder, reader_of
from common.runs.tool import read


def tool(
    first: Path,
    *rest: int,
    on: bool = False,
    many: Annotated[int, number(int, 1, 9)] = 3,
    ratio: float | None = None,
    words: tuple[Literal["a", "b"], ...] = (),
    counts: list[Count] | None = None,
    needed_name: str,
    **flags: Any,
) -> None:
    """A parameter of every kind."""


GAIN = {"gain": Flag("gain", 1.0, positive), "often": Flag("often", "min", choices=("min", "max"))}


def values(*words: str) -> tuple[list[Any], dict[str, Any]]:
    return read(tool, ["file", "--needed_name", "x", *words], GAIN)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--many", "4"], {"many": 4}),
        (["--many=4"], {"many": 4}),
        (["-m", "4"], {"many": 4}),
        (["--on"], {"on": True}),
        (["--on", "no"], {"on": False}),
        (["--ratio", "-1.5"], {"ratio": -1.5}),
        (["--words", "a,b"], {"words": ("a", "b")}),
        (["--words", "[b, a]"], {"words": ("b", "a")}),
        (["--counts", "3"], {"counts": [3]}),
        (["--gain", "2"], {"gain": 2.0}),
        (["--often", "max"], {"often": "max"}),
    ],
)
def test_values_arrive_as_they_are_annotated(words: list[str], flags: dict[str, Any]) -> None:
    assert values(*words) == ([Path("file")], {"needed_name": "x", **flags})


def test_words_without_a_flag_arrive_in_order_and_a_switch_leaves_them() -> None:
    assert values("-5", "--on", "7") == ([Path("file"), -5, 7], {"needed_name": "x", "on": True})
    assert values("--on", "true", "7") == ([Path("file"), 7], {"needed_name": "x", "on": True})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--mny", "3"], "unknown flag --mny; did you mean --many?"),
        (["--gian", "3"], "unknown flag --gian; did you mean --gain?"),
        (["--n\x1b[31m\n", "3"], r"unknown flag --n\x1b[31m\n; --help lists the flags"),
        (["--many", "10"], "--many: expected a whole number from 1 to 9, not '10'"),
        (["--many", "3", "-m", "3"], "--many: typed twice; expected each flag once"),
        (["--often", "mean"], "--often: expected min or max, not 'mean'"),
        (["--words", "a,,b"], "--words: expected words with single commas between them, not 'a,,b'"),
        (["--words", "a,c"], "--words: expected a or b, not 'c'"),
        (["--ratio", "inf"], "--ratio: expected a number from -1e+30 to 1e+30, not 'inf'"),
        (["--ratio", "--on"], "--ratio: expected a value behind it"),
        (["x"], "REST: expected a whole number from -1000000000 to 1000000000, not 'x'"),
    ],
)
def test_the_line_says_what_was_wrong_and_what_is_expected(words: list[str], line: str) -> None:
    with pytest.raises(UserError) as error:
        values(*words)
    assert str(error.value) == line


def test_what_has_no_default_must_be_typed() -> None:
    with pytest.raises(UserError, match="expected FIRST and --needed_name; --help says"):
        read(tool, [], {})


def takes(read: Callable[[str], Any], word: str) -> bool:
    try:
        read(word)
    except ArgumentTypeError:
        return False
    return True


def test_places_to_write_are_looked_at_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    fitting = {NewFile: ("file", "new", "new/new", "folder/new"), NewFolder: ("folder", "new", "new/new")}
    wrong = {NewFile: ("folder", "pipe", "file/new"), NewFolder: ("file", "pipe", "file/new", "n" * 300)}
    for hint, names in fitting.items():
        assert [reader_of(hint)(str(tmp_path / name)) for name in names] == [tmp_path / name for name in names]
    for hint, names in wrong.items():
        assert [name for name in names if takes(reader_of(hint), str(tmp_path / name))] == []
