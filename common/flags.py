"""Options as frozen dataclasses whose fields say how they are typed: ``epochs: int = flag(200, count, "epochs")``.

A field's reader is the only way to its value, whether it was typed, stands in a configuration file or in a checkpoint:
the same types and the same bounds for all.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from common.errors import UserError

T = TypeVar("T")
Reader = Callable[[str], Any]
BARE = ""  # value of a flag that may stand alone
MOST_NUMBER = 10**9  # of what is counted: epochs, samples, pixels, processes
MOST_SEED = 2**63 - 1
LONGEST = 200  # characters of a wrong value that a message repeats


def boolean(text: str) -> bool:
    """true, 1, yes, false, 0 or no, in any case."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, 1 or 0, yes or no, not {shown(text)}")
    return words[text.lower()]


def number(
    kind: type[int] | type[float], low: float, high: float, what: str, above: bool = False, below: bool = False
) -> Reader:
    """A reader of numbers in [low, high]; ``above``, ``below``: without that end. NaN is refused everywhere."""

    def read(text: str) -> Any:
        try:
            value = kind(text) if len(text) <= LONGEST else None
        except ValueError:
            value = None
        within = value is not None and (value > low if above else value >= low)
        if value is None or not within or not (value < high if below else value <= high) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected {what}, not {shown(text)}")
        return value

    return read


natural = number(int, 0, MOST_NUMBER, "a whole number, 0 or more")
count = number(int, 1, MOST_NUMBER, "a whole number, 1 or more")
seed_number = number(int, 0, MOST_SEED, f"a whole number from 0 to {MOST_SEED}")
non_negative = number(float, 0, 1e30, "a number, 0 or more")
positive = number(float, 1e-30, 1e30, "a number above 0")
fraction = number(float, 0, 1, "a number between 0 and 1", above=True, below=True)


def word(text: str) -> str:
    """A name or a path: not empty, on one line."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name or a path, not {shown(text)}")
    return text


def shown(value: object) -> str:
    """A wrong value as a message repeats it: on one line, and not for ever."""
    text = repr(value) if isinstance(value, str) else " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


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
                if not isinstance(given, list | tuple) or not all(isinstance(one, str | int | float) for one in given):
                    raise argparse.ArgumentTypeError(f"expected a list, not {shown(given)}")
                words = [str(one) for one in given]
                return self.read_all(words) if self.read_all else [self.read(word) for word in words]
            if not isinstance(given, str | int | float):
                raise argparse.ArgumentTypeError(f"expected a single value, not {shown(given)}")
            value = self.read(str(given))
            if self.choices is not None and value not in self.choices:
                raise argparse.ArgumentTypeError(f"expected one of {', '.join(self.choices)}, not {shown(given)}")
            return value
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UserError(f"{where}: {self.name}: {error}") from None


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
