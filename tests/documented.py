"""The commands that the documents show, taken apart as a shell would and read by the program that each of them runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common.command import program, tasks
from common.config.options import all_flags, parse
from common.errors import UserError
from common.flags import Flag, values_of
from common.quantizers import make_scheme
from common.runs.tool import HELP, read
from tests.conftest import REPOSITORY
from tests.tools.entry import entry, tools
from tests.tools.test_arguments import commands as all_commands
from tests.tools.test_arguments import flags_of
from tools.runs.main_flags import read_as_there
from tools.runs.programs import main_of, programs

FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```shell\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
RUNS = re.compile(r"(?:\w+=\S+ )*(?:python (?:\S*/)?\w+\.py\b|alignq \w|tox run|torchrun)")
ELSEWHERE = {"cp", "git", "mkdir", "mypy", "pytest", "qonnx-cleanup", "ruff"}  # programs that are not ours
PLACEHOLDER = re.compile(r"[A-Z_]+|\w\\\|\w")


class Typed(NamedTuple):
    """A command as typed in a folder; None: the text does not say in which."""

    words: list[str]
    folder: Path | None

    def __str__(self) -> str:
        return shlex.join(self.words)


def typed_in_blocks(text: str, values: dict[str, str] | None = None) -> Iterator[Typed]:
    """Every command of every shell block. A block begins in the repository and goes where its `cd` goes.

    Args:
        values: of the shell's variables before the first block; those that a block sets, later ones have.
    """
    values = {"HOME": "/home/me", **(values or {})}
    for block in SHELL.findall(text):
        yield from _commands(block, values)


def typed_in_prose(text: str) -> Iterator[Typed]:
    """Every program with its flags that stands in a sentence."""
    for code in INLINE.findall(FENCED.sub("", text)):
        line = " ".join(code.split())
        if RUNS.match(line):
            yield from (Typed(words, None) for words in _simple(line))


def flags_in_prose(text: str) -> Iterator[list[str]]:
    """Every flag that a sentence or a table names, with the words behind it."""
    for code in INLINE.findall(FENCED.sub("", text)):
        if code.startswith("--"):
            yield code.split()


def _commands(block: str, values: dict[str, str]) -> Iterator[Typed]:
    folder = REPOSITORY
    for line in block.replace("\\\n", " ").splitlines():
        for words in _simple(line):
            if words[0] == "for":
                values[words[1]] = words[3]
                continue
            words = [re.sub(r"\$\{?(\w+)\}?", lambda name: values[name[1]], word) for word in words]
            while words and (given := re.fullmatch(r"(\w+)=(.*)", words[0])):
                values[given[1]] = given[2]
                words = words[1:]
            if words[:1] == ["cd"]:
                folder = (folder / words[1]).resolve()
                assert folder.is_dir(), f"cd {words[1]}: there is no such folder from where the block has come to"
            elif words:
                yield Typed(words, folder)


def _simple(line: str) -> Iterator[list[str]]:
    """The words of the commands of a line: for, do and done are of the shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|"):
            if words and words != ["done"]:
                yield words
            words = []
        elif word != "do" or words:
            words.append(word)


def check(typed: Typed) -> None:
    """The program that a command runs reads its words.

    Raises:
        UserError: it refuses them. AssertionError: there is no such program.
    """
    words = typed.words
    while "=" in words[0]:
        words = words[1:]
    first, *rest = words
    if first == "tox":
        name, *own = [word for word in rest[1:] if word not in ("-e", "--")]
        assert name in ("demo", "tests", "lint", "report") or name.replace("-", "/") in tasks(), f"tox has no {name}"
        if name.replace("-", "/") in tasks():
            _read(tasks()[name.replace("-", "/")], own)
        elif name in ("demo", "report"):
            _read(REPOSITORY / "tools" / f"{name}.py", own)
    elif first == "torchrun":
        at = next(place for place, word in enumerate(rest) if word.endswith(".py"))
        _read(_file(rest[at], typed.folder), rest[at + 1 :])
    elif first == "alignq":
        if not HELP & set(rest[:1]):
            file, *own = program(rest)
            _read(Path(file), own, typed.folder is None)
    elif first == "python" and rest[0] != "-m":
        if (file := _file(rest[0], typed.folder)) is not None:
            _read(file, rest[1:], typed.folder is None)
        else:
            _read_by_any(rest[1:])
    else:
        assert first in ELSEWHERE or rest[:2] == ["-m", "pip"], f"{first}: a program that nobody knows"


def _file(word: str, folder: Path | None) -> Path | None:
    """The file that python is given; None: a main.py of no folder in particular."""
    if folder is None and word == "main.py":
        return None
    file = ((folder or REPOSITORY) / word).resolve()
    assert file.is_file(), f"{word}: there is no such file in {folder or REPOSITORY}"
    return file


def _read(file: Path | None, words: list[str], named: bool = False) -> None:
    """``named``: in a sentence, where a program by itself is its name."""
    assert file is not None
    if HELP & set(words) or (named and not words):
        return
    if file.name == "main.py":
        (task,) = (task for variants in programs().values() for task in variants if main_of(task) == file)
        options = parse(task, words)
        make_scheme(**options.quantization.scheme, **values_of(options.own))
        return
    assert file.stem in tools(), f"{file} is no program"
    _, (tool, *further) = entry(file.stem)
    if isinstance(tool, dict):
        tool, words = tool[words[0]], words[1:]
    own = further[0]() if further else {}
    _, values = read(tool, words, own)
    known = _flags_of_tasks()
    for name in values.keys() & own.keys():  # some tools pass these on as typed
        _taken(known[name], str(values[name]))


def _read_by_any(words: list[str]) -> None:
    """By the program of one task at least; of none in particular is said in a sentence."""
    if HELP & set(words):
        return
    faults = []
    for variants in programs().values():
        for task in variants:
            try:
                parse(task, words)
            except UserError as error:
                faults.append(str(error))
            else:
                return
    raise UserError(faults[0])


def _flags_of_tasks() -> dict[str, list[Flag]]:
    found: dict[str, list[Flag]] = {}
    for task in (task for variants in programs().values() for task in variants):
        for name, flag in read_as_there(all_flags(task)).items():
            found.setdefault(name, []).append(flag)
    return found


def known_flags() -> dict[str, list[Flag]]:
    """Every flag of every program, by every spelling."""
    found = _flags_of_tasks()
    for command in all_commands():
        for name, flag in flags_of(command).items():
            found.setdefault(name, []).append(flag)
    return found


def check_flag(words: list[str], known: dict[str, list[Flag]]) -> None:
    """A flag of some program, and the value behind it, if it is one and no placeholder."""
    name, *values = words[0][2:].split("=")
    assert name in known or name == "help", f"--{name} is a flag of no program"
    values += [word for word in words[1:2] if not word.startswith("--")]
    if values and name in known and not PLACEHOLDER.search(values[0]):
        _taken(known[name], values[0])


def _taken(flags: list[Flag], word: str) -> None:
    faults = []
    for flag in flags:
        try:
            flag.read_all([word]) if flag.read_all else flag.take(word)
        except Exception as error:
            faults.append(error)
        else:
            return
    raise UserError(f"--{flags[0].name}: {faults[0]}")
