"""Files of the user's: what is no ordinary file is refused before it is opened, since a pipe would be waited for."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from common.errors import UserError

MOST_TEXT = 64 * 2**20  # bytes of a file that is read as text


def ordinary(path: Path, expected: str) -> Path:
    """``path``, which is an ordinary file that can be read.

    Args:
        expected: for the message, such as "a checkpoint file such as model_best.pt".
    Raises:
        UserError: it is not there, a folder, a pipe, a device, or may not be read.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason(error)}; expected {expected}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: a folder; expected {expected}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: a pipe, a socket or a device; expected {expected}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read; expected {expected}")
    return path


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: as ``ordinary``, or it is too large, not UTF-8, not JSON, nested beyond reason or not an object.
    """
    if ordinary(path, expected).stat().st_size > MOST_TEXT:
        raise UserError(f"{path}: larger than {MOST_TEXT // 2**20} MiB; expected {expected}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a complete JSON file ({reason(error)}); expected {expected}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


def reason(error: BaseException) -> str:
    """What an exception says, on one line and not for ever; the name of its class where it says nothing."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:160] or type(error).__name__
