"""Files of the user's: what is no ordinary file is refused before it is opened, since a pipe would be waited for."""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError, one_line, shortened
from common.flags import MOST_NUMBER, shown

MOST_BYTES = 2**36  # of a file at all
MOST_TEXT, MOST_AT_ONCE = 2**26, 2**31  # of one that is read as text, and of another one that is read in one piece


def ordinary(path: Path, expected: str, most: int = MOST_BYTES) -> Path:
    """``path``, which is an ordinary file that can be read.

    Args:
        expected: for the message, such as "a checkpoint file such as model_best.pt". most: bytes.
    Raises:
        UserError: it is not there, a folder, a pipe, a device, larger, or may not be read.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason(error)}; expected {expected}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: a folder; expected {expected}")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: a pipe, a socket or a device; expected {expected}")
    if found.st_size > most:
        raise UserError(f"{path}: larger than {most // 2**20:,} MiB; expected {expected}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read; expected {expected}")
    return path


def read_bytes(path: Path, expected: str) -> bytes:
    """What is in a file, in one piece.

    Raises:
        UserError: as ``ordinary``.
    """
    try:
        return ordinary(path, expected, MOST_AT_ONCE).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); expected {expected}") from None


def read_text(path: Path, expected: str) -> str:
    """The text in a file.

    Raises:
        UserError: as ``ordinary``, or it is not UTF-8.
    """
    try:
        return ordinary(path, expected, MOST_TEXT).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); expected {expected}") from None


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: as ``read_text``, or it is not JSON, nested beyond reason, names something twice or is no object.
    """
    try:
        return parse_json(read_text(path, expected))
    except ValueError as error:
        raise UserError(f"{path}: not a complete JSON file ({error}); expected {expected}") from None


def read_rows(path: Path, expected: str) -> list[dict[str, Any]]:
    """The lines of a file such as metrics.jsonl, each an object with its "epoch"; [] where there is no such file.

    A last line that a killed run left half-written does not count.

    Raises:
        UserError: as ``read_text``, or another line is no such object.
    """
    if not os.path.lexists(path):
        return []
    rows: list[dict[str, Any]] = []
    lines = read_text(path, expected).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            if not is_whole(row.get("epoch"), 0):
                raise ValueError(f"its epoch is {shown(row.get('epoch'))}")
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number}: {error}; expected {expected}") from None
        rows.append(row)
    return rows


def read_objects(path: Path, expected: str) -> list[dict[str, Any]]:
    """The lines of a file, each a JSON object; [] where there is no such file.

    Raises:
        UserError: as ``read_text``, or a line is no object.
    """
    if not os.path.lexists(path):
        return []
    found = []
    for number, line in enumerate(read_text(path, expected).splitlines(), start=1):
        try:
            found.append(parse_json(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); expected {expected}") from None
    return found


def parse_json(text: str) -> dict[str, Any]:
    """The object that JSON text stands for.

    Raises:
        ValueError: it is no JSON, nested beyond reason, names something twice, or is no object.
    """
    try:
        content = json.loads(text, object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason(error)) from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not named values")
    return content


def _named_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it names something twice")
    return content


def is_whole(value: object, low: int) -> bool:
    """Whether a value of a file is a whole number from ``low`` on, as anything is counted."""
    return type(value) is int and low <= value <= MOST_NUMBER


def reason(error: BaseException) -> str:
    """What an exception says, on one line and not for ever; the name of its class where it says nothing."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shortened(one_line(said), 160) or type(error).__name__
