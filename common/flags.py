"""Options as frozen dataclasses whose fields say how they are typed: ``epochs: int = flag(200, count, "epochs")``.

A field's reader is the only way to its value, whether it was typed, stands in a configuration file or in a checkpoint:
the same types and the same bounds for all.
"""

import argparse
import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeVar

from common.errors import UserError, one_line, shortened

T = TypeVar("T")
Reader = Callable[[str], Any]
BARE = ""  # value of a flag that may stand alone
MOST_NUMBER = 10**9  # of what is counted: epochs, samples, pixels, processes
MOST_SEED = 2**63 - 1
MOST_WORDS = 10_000  # of a flag that takes several
LONGEST = 100  # characters of a wrong value that a message repeats
LONGEST_NAME, LONGEST_PATH = 255, 2000  # bytes


def boolean(text: str) -> bool:
    """true, 1, yes, false, 0 or no, in any case."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, 1 or 0, yes or no, not {shown(text)}")
    return words[text.lower()]


def number(
    kind: type[int] | type[float], low: float, high: float, what: str = "", above: bool = False, below: bool = False
) -> Reader:
    """A reader of numbers in [low, high]; ``above``, ``below``: without that end. NaN is refused everywhere.

    Args:
        what: is counted or measured, for the message, which says the bounds by itself.
    """
    name = what or ("a whole number" if kind is int else "a number")
    expected = f"{name} from {low} to {'below ' if below else ''}{high}"
    if above:
        expected = f"{name} above {low} and {'below' if below else 'up to'} {high}"

    def read(text: str) -> Any:
        try:
            value = kind(text) if len(text) <= LONGEST else None
        except ValueError:
            value = None
        within = value is not None and (value > low if above else value >= low)
        if value is None or not within or not (value < high if below else value <= high) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected {expected}, not {shown(text)}")
        return value

    return read


natural = number(int, 0, MOST_NUMBER)
count = number(int, 1, MOST_NUMBER)
seed_number = number(int, 0, MOST_SEED)
batch_size = number(int, 1, 10**6, "a whole number of images")
non_negative = number(float, 0, 1e30)
positive = number(float, 0, 1e30, above=True)
fraction = number(float, 0, 1, above=True, below=True)


def word(text: str) -> str:
    """A name: not empty, on one line."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name or a path, not {shown(text)}")
    return text


def path(text: str) -> str:
    """A path whose names a file system can hold."""
    word(text)
    if max(len(os.fsencode(name)) for name in text.split("/")) > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        raise argparse.ArgumentTypeError(
            f"expected a path of at most {LONGEST_PATH} bytes and names of at most {LONGEST_NAME}, not {shown(text)}"
        )
    return text


def name_below(text: str) -> str:
    """The name of a folder in another one, or a path that stays below that."""
    inside = PurePosixPath(path(text))
    if inside.is_absolute() or not inside.parts or ".." in inside.parts:
        raise argparse.ArgumentTypeError(f"expected the name of a folder, not {shown(text)}")
    return text


_brief = reprlib.Repr()  # which looks at the beginning of a value alone, however large or deep it is
_brief.maxstring = _brief.maxother = _brief.maxlong = LONGEST


def shown(value: object) -> str:
    """A wrong value as a message repeats it: on one line, and not for ever."""
    try:
        return shortened(one_line(_brief.repr(value)), 2 * LONGEST)
    except Exception:  # the repr of a foreign value, such as a whole number of 5,000 digits
        return f"a {type(value).__name__}"


def listed(names: Sequence[str]) -> str:
    return " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"


def epochs(words: Sequence[str]) -> list[int]:
    """[80, 120] in any spelling: with or without brackets, commas and quotes, as one word or several; ascending."""
    text = " ".join(map(str, words))
    try:
        return sorted(natural(word) for word in re.split(r"[\s,]+", text.strip("[]() ")) if word)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected epochs such as [80, 120], 80 120 or 80,120, not {shown(text)}"
        ) from None


@dataclass(frozen=True)
class NoOptions:
    """The options of what has none of its own."""


@dataclass(frozen=True)
class Flag:
    """How one field is typed.

    Attributes:
        name: without dashes. default: of the dataclass. help: for --help.
        read: one word to its value, raising argparse.ArgumentTypeError with what was expected.
        also: further spellings. choices: the words that are allowed.
        nargs, const: as of argparse. read_all: of a flag with several words, instead of reading each.
    """

    name: str
    default: Any
    read: Reader = str
    help: str = ""
    also: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    const: Any = None
    read_all: Callable[[Sequence[str]], Any] | None = None

    @property
    def spellings(self) -> list[str]:
        return [f"--{name}" for name in (self.name, *self.also)]

    def take(self, text: str) -> Any:
        """What a word means.

        Raises:
            argparse.ArgumentTypeError: with what was expected.
        """
        if self.choices is not None and text not in self.choices:
            raise argparse.ArgumentTypeError(f"expected {listed(self.choices)}, not {shown(text)}")
        return self.read(text)

    def value(self, given: Any, where: str) -> Any:
        """What ``given``, from a file, means: read as if it had been typed.

        Args:
            given: a word, number, boolean, list or None, as JSON and checkpoints hold them.
            where: for the message: which file.
        Raises:
            UserError: what the flag would not take either.
        """
        try:
            if given is None and self.default is None:
                return None
            if self.nargs in ("*", "+"):
                if not isinstance(given, list | tuple) or len(given) > MOST_WORDS or not all(map(_is_word, given)):
                    raise argparse.ArgumentTypeError(f"expected a list, not {shown(given)}")
                words = [str(one) for one in given]
                return self.read_all(words) if self.read_all else [self.take(word) for word in words]
            if not _is_word(given):
                raise argparse.ArgumentTypeError(f"expected a single value, not {shown(given)}")
            return self.take(str(given))
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UserError(f"{where}: {self.name}: {error}") from None


def _is_word(given: object) -> bool:
    return isinstance(given, str | int | float)


def flag(default: Any, read: Reader = str, help: str = "", **settings: Any) -> Any:
    """A field of an options class; ``settings`` as of ``Flag``. A list as default is copied for each instance."""
    metadata = {"flag": {"read": read, "help": help, **settings}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(default: bool, help: str) -> Any:
    """A field that is on or off: a bare flag is True, and any spelling of true and false follows it."""
    return flag(default, boolean, help, nargs="?", const=True)


def flags_of(options: type) -> dict[str, Flag]:
    """The flags of an options class by name, in the order of its fields."""
    found = {}
    for one in dataclasses.fields(options):
        if "flag" in one.metadata:
            default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
            found[one.name] = Flag(one.name, default, **one.metadata["flag"])
    return found


def values_of(options: Any) -> dict[str, Any]:
    """The values of an options instance by flag."""
    return {name: getattr(options, name) for name in flags_of(type(options))}


def read_options(options: type[T], given: Mapping[str, Any], where: str) -> T:
    """An options instance from values of a file, each read as if typed; what is absent has its default.

    Raises:
        UserError: a value that the flag would not take, or a name that is no flag of the class.
    """
    known = flags_of(options)
    if strange := [name for name in given if name not in known]:
        raise UserError(f"{where}: unknown entry {shown(strange[0])}")
    return options(**{name: known[name].value(value, where) for name, value in given.items()})
