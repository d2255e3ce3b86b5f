"""A tool's command line, read by the signature of its function: parameters are flags, annotations say what they take.

Everything is read, and what is wrong is refused, before the function is called. fire renders --help.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

from common.errors import UserError
from common.flags import Flag, boolean, shown
from common.runs.annotations import flag_of
from common.runs.tool_help import described, show_help

Tool = Callable[..., object]
Further = Callable[[], Mapping[str, Flag]]  # by every spelling, without dashes
HELP = {"-h", "--help"}


def run_tool(tool: Tool | Mapping[str, Tool], further: Further = dict) -> NoReturn:
    """Read the command line, call the tool and exit, as ``run_cleanly`` without --resume.

    Args:
        tool: keyword-only parameters are flags, others are words without a flag; or several tools, by the first word.
        further: the flags that its ``**parameter`` takes.
    """
    from common.runs.cli import run_cleanly  # here, since it needs torch, and some tools look for that first

    run_cleanly(lambda: call(tool, sys.argv[1:], further), resumes=False)


def run_bare(tool: Tool) -> NoReturn:
    """As ``run_tool``, with nothing but Python itself: without torch, and a full disk ends in a traceback."""
    line, status = "", 0
    try:
        call(tool, sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        line, status = f"error: {' '.join(str(error).split())}", 2
    except KeyboardInterrupt:
        line, status = "interrupted", 130
    except BrokenPipeError:  # of a pipe such as "| head", whose reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    if line:
        print(f"{sys.argv[0]}: {line}", file=sys.stderr)
    sys.exit(status)


def call(tool: Tool | Mapping[str, Tool], words: Sequence[str], further: Further = dict) -> None:
    """Call the tool, or one of several, with what the words say, or show its help.

    Raises:
        UserError: a word that is none of its flags, a flag without or with a wrong value, twice, or not typed at all.
    """
    if isinstance(tool, Mapping):
        if not words or words[0] in HELP:
            return show_help({name: described(one) for name, one in tool.items()})
        if words[0] not in tool:
            raise UserError(f"{shown(words[0])}: expected one of {', '.join(tool)}")
        if not HELP & set(words):
            return call(tool[words[0]], words[1:], further)
        return show_help({name: described(one) for name, one in tool.items()}, words[0])
    if HELP & set(words):
        return show_help(described(tool))
    places, flags = read(tool, words, further())
    tool(*places, **flags)
    return None


def read(tool: Tool, words: Sequence[str], further: Mapping[str, Flag]) -> tuple[list[Any], dict[str, Any]]:
    """What the words say, typed: the values without a flag, and those of the flags that were typed."""
    parameters = inspect.signature(tool).parameters.values()
    hints = get_type_hints(tool, include_extras=True)
    own = {p.name: flag_of(p.name, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}
    places = [flag_of(p.name, hints[p.name]) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = next((flag_of(p.name, hints[p.name]) for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    values: list[Any] = []
    flags: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if _is_flag(word):
            flag, value = _flag_and_value(word, left, own, further, words_too=bool(places or rest))
            if flag.name in flags:
                raise UserError(f"--{flag.name}: typed twice; expected each flag once")
            flags[flag.name] = value
            continue
        place = places[len(values)] if len(values) < len(places) else rest
        if place is None:
            raise UserError(f"unexpected word {shown(word)}; --help lists the flags")
        values.append(_value(place.name.upper(), place, word))
    missing = [place.name.upper() for place in places[len(values) :]]
    missing += [f"--{p.name}" for p in parameters if p.name in own and p.default is p.empty and p.name not in flags]
    if missing:
        raise UserError(f"expected {' and '.join(missing)}; --help says what belongs there")
    return values, flags


def _flag_and_value(
    word: str, left: list[str], own: Mapping[str, Flag], further: Mapping[str, Flag], words_too: bool
) -> tuple[Flag, Any]:
    """A flag and what it says, by itself, behind a sign or in the next of the words that are ``left``."""
    spelled, equals, text = word.partition("=")
    flag = _named(spelled, own, further)
    if not equals and _takes_next(flag, left, words_too):
        text, equals = left.pop(0), "="
    if equals:
        return flag, _value(f"--{flag.name}", flag, text)
    if flag.nargs != "?":
        raise UserError(f"--{flag.name}: expected a value behind it")
    return flag, flag.const


def _is_flag(word: str) -> bool:
    return re.match(r"--|-[A-Za-z]", word) is not None


def _named(spelled: str, own: Mapping[str, Flag], further: Mapping[str, Flag]) -> Flag:
    """The flag of a spelling: --like_this, --like-this, or by its initial where that is its alone, as --help has it."""
    name = spelled.lstrip("-").replace("-", "_")
    known = {**further, **own}
    if name in known:
        return known[name]
    initial = [one for one in own if len(name) == 1 and one[0] == name]
    if len(initial) == 1:
        return own[initial[0]]
    near = difflib.get_close_matches(name, known, 1, 0.5)
    advice = f"did you mean --{near[0]}?" if near else "--help lists the flags"
    quoted = shown(spelled).strip("'")
    raise UserError(f"unknown flag {quoted}; {advice}")


def _takes_next(flag: Flag, left: Sequence[str], words_too: bool) -> bool:
    """Whether the next word is the flag's value. A switch leaves a word that may be something else."""
    if not left or _is_flag(left[0]):
        return False
    if flag.nargs == "?" and words_too and left[0].strip():
        try:
            boolean(left[0])
        except argparse.ArgumentTypeError:
            return False
    return True


def _value(name: str, flag: Flag, word: str) -> Any:
    if not word.strip():
        raise UserError(f"{name}: expected a value, not {shown(word)}")
    try:
        return flag.take(word)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None
