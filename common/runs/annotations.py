"""What the words of a tool's command line become: a reader for each annotation of a parameter."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from common.flags import MOST_NUMBER, Flag, Reader, boolean, count, listed, natural, number, path, seed_number, shown

PLAIN: dict[type, Reader] = {
    str: str,
    Path: lambda word: Path(path(word)),
    int: number(int, -MOST_NUMBER, MOST_NUMBER),
    float: number(float, -1e30, 1e30),
    bool: boolean,
}


def flag_of(name: str, hint: Any) -> Flag:
    """A parameter as a flag; bool may stand alone."""
    return Flag(name, None, reader_of(hint), nargs="?" if hint is bool else None, const=True)


def reader_of(hint: Any) -> Reader:
    """How a word becomes a value of an annotated type.

    Args:
        hint: str, Path, int, float, bool, ``X | None``, Literal, Annotated[type, reader], or tuple[X, ...] and list[X]
            (commas between the words).
    """
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return arguments[1]
    if get_origin(hint) in (Union, UnionType):
        return reader_of(next(one for one in arguments if one is not NoneType))
    if get_origin(hint) is Literal:
        return one_of(*arguments)
    if get_origin(hint) in (tuple, list):
        return several(reader_of(arguments[0]), get_origin(hint))
    return PLAIN[hint]


def one_of(*names: str) -> Reader:
    def read(word: str) -> str:
        if word not in names:
            raise argparse.ArgumentTypeError(f"expected {listed(names)}, not {shown(word)}")
        return word

    return read


def several(read: Reader, collect: type = tuple) -> Reader:
    """Words with commas between them, in brackets or without: 8,4 or [8, 4]."""

    def read_all(word: str) -> Any:
        words = [one.strip() for one in word.strip("[]() ").split(",")]
        if "" in words:
            raise argparse.ArgumentTypeError(f"expected words with single commas between them, not {shown(word)}")
        return collect(read(one) for one in words)

    return read_all


def new_file(word: str) -> Path:
    """A path at which a file can be written; the folders on the way need not be there."""
    place = Path(path(word))
    _check_place(place, place.is_file, "a file to write")
    return place


def new_folder(word: str) -> Path:
    """A folder to write into, there or not."""
    place = Path(path(word))
    _check_place(place, place.is_dir, "a folder")
    return place


def _check_place(place: Path, fits: Callable[[], bool], what: str) -> None:
    """Whether it can be written, tried with a file that has no name and is gone at once."""
    try:
        there = next(one for one in (place, *place.absolute().parents) if _is_there(one))
        if not (fits() if there == place else there.is_dir()):
            kind = "a folder" if there.is_dir() else "a file" if there.is_file() else "neither file nor folder"
            raise argparse.ArgumentTypeError(f"expected {what}, and {there} is {kind}")
        tempfile.TemporaryFile(dir=there if there.is_dir() else there.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {shown(str(place))}: {error.strerror}") from None


def _is_there(place: Path) -> bool:
    """Also a link that leads nowhere. OSError: nobody can say, as in a loop of links."""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return place.is_symlink()
    return True


Count = Annotated[int, count]
Natural = Annotated[int, natural]
Seed = Annotated[int, seed_number]
NewFile = Annotated[Path, new_file]
NewFolder = Annotated[Path, new_folder]
