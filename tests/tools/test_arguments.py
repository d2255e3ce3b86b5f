"""Junk on a tool's command line: every tool, every flag and every fault is one line and status 2, before any work."""

import inspect
import re
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.flags import Flag
from common.runs.annotations import flag_of
from tests.conftest import REPOSITORY, refusal_line
from tests.tools.entry import entry, refused, tools, type_in

JUNK = ("x", "1.5", "-1", "nan", "9" * 30, "8,,x", "none of these")
FITTING = (
    *("1", "64", "4,2", "ours:4", "a=b", "all", "ours", "resnet20", "torchvision:resnet18", "http://here"),
    *("cpu", "packed", "bf16", "local", "eager", "steps", "imagenet"),
)


class Command(NamedTuple):
    """A tool as it is typed: its program, the words that choose it there, its function, the flags passed on."""

    program: str
    words: tuple[str, ...]
    tool: Callable[..., object]
    further: dict[str, Flag]


def commands() -> Iterator[Command]:
    for program in tools():
        _, (tool, *further) = entry(program)
        several = tool if isinstance(tool, dict) else {"": tool}
        for word, one in several.items():
            yield Command(program, (word,) if word else (), one, further[0]() if further else {})


def flags_of(command: Command) -> dict[str, Flag]:
    hints, parameters = inspect.get_annotations(command.tool), inspect.signature(command.tool).parameters.values()
    own = {p.name: flag_of(p.name, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return {**{flag.name: flag for flag in command.further.values()}, **own}


def takes(flag: Flag, word: str) -> bool:
    try:
        value = flag.read(word)
    except (ArgumentTypeError, ValueError):
        return False
    return flag.choices is None or value in flag.choices


def faults_of(flag: Flag) -> Iterator[tuple[str, ...]]:
    """Empty, without a value, of another type, out of range, typed twice in two spellings."""
    typed = f"--{flag.name}"
    yield from ((typed, ""), (f"{typed}=",), (typed, "  "))
    if flag.nargs != "?":
        yield from ((typed,), (typed, "--other"))
    yield from ((f"{typed}={word}",) for word in JUNK if not takes(flag, word))
    word = next((word for word in (*FITTING, *(flag.choices or ())) if takes(flag, word)), None)
    assert word is not None, f"{typed}: no word that fits; add one to FITTING"
    yield typed, word, f"{typed.replace('_', '-')}={word}"


def cases() -> Iterator[tuple[str, str, list[tuple[str, ...]]]]:
    for command in commands():
        kinds = [p.kind for p in inspect.signature(command.tool).parameters.values()]
        faults = [("--no_such_flag", "3"), ("--no_such_flag",), ("-Z",), ("--",)]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            faults.append(("one", "more") if inspect.Parameter.POSITIONAL_OR_KEYWORD in kinds else ("one",))
        yield command.program, "junk", [(*command.words, *words) for words in faults]
        for name, flag in flags_of(command).items():
            yield command.program, name, [(*command.words, *words) for words in faults_of(flag)]


CASES = list(cases())


def test_there_are_many_faults_and_none_of_the_tools_is_left_out() -> None:
    assert sum(len(faults) for _, _, faults in CASES) > 1500
    assert {program for program, _, _ in CASES} == set(tools())


@pytest.mark.parametrize(
    ("program", "flag", "faults"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_junk_is_refused_in_one_line(
    program: str, flag: str, faults: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in faults:
        line = refused(program, *words)
        assert len(line) < 1000
        assert flag == "junk" or f"--{flag}" in line, "the line names the flag"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", commands(), ids=lambda command: "-".join((command.program, *command.words)))
def test_help_lists_every_flag(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for asked in ("--help", "-h"):
        status, *both = type_in(command.program, *command.words, "--no_such_flag", asked)
        assert status == 0
        own = {flag for flag in flags_of(command) if flag in inspect.signature(command.tool).parameters}
        assert {f"--{flag}=" for flag in own} <= set(re.findall(r"--\w+=", "".join(both)))
        assert not re.search("Annotated|function|PosixPath", "".join(both)), "types and defaults as they are typed"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("style", [["tools/sizes.py"], ["-m", "tools.sizes"]])
def test_a_tool_is_a_program_and_a_module(style: list[str], tmp_path: Path) -> None:
    script = style[0].endswith(".py")
    command = [sys.executable, *([str(REPOSITORY / style[0])] if script else style), "--bits", "9"]
    result = subprocess.run(command, cwd=tmp_path if script else REPOSITORY, capture_output=True, text=True)
    assert "--bits: expected bits from 1 to 8, not '9'" in refusal_line(result.returncode, result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_runs_that_crp_effect_cannot_compare_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def job(name: str, summary: str, *rows: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(summary)
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
        return name

    whole = '{"best": {"target": {"prec1": 50}}, "demo": true}'
    row = '{"epoch": 0, "relation_shift": {"mean": 0.1}, "target": {"prec1": 50}}'
    good = job("good", whole, row)
    faults = {
        "nowhere": "nowhere/summary.json: there is no such file; expected the job_dir of a finished run",
        job("cut", whole[:20], row): "cut/summary.json: not a complete JSON file",
        job("empty", whole): "empty: not the files of a finished run",
        job("list", "[1]", row): "list/summary.json: not a complete JSON file (it holds a list",
        job("single", whole, '{"epoch": 0, "test": {"prec1": 50}}'): "single: this run did not measure its relations",
        f"{good},{job('longer', whole, row, row)}": "with CRP: runs of 1 and 2 epochs; expected equally many",
    }
    for folders, line in faults.items():
        assert line in refused("crp_effect", "--with_crp", folders, "--without", good)
    assert not (tmp_path / "results").exists()
