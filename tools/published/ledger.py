"""The lock file beside fetched weights: the SHA-256 of each, and where it came from."""

import json
import os
import re
from pathlib import Path

from common.data.download import sha256_of
from common.errors import UserError
from common.reading import parse_json, read_text
from common.writing import write_whole
from tools.published.layout import safe_name

NAME = "fetched.lock.json"
_FORMAT = 1

Records = dict[str, dict[str, str]]


def read(path: Path) -> Records:
    """The records of a lock file, by the file's name below its folder; none if there is no lock file.

    Raises:
        UserError: not a lock file, or a name in it leaves the folder.
    """
    if not os.path.lexists(path):
        return {}
    try:
        content = parse_json(read_text(path, "a lock file of this program"))
        files = dict(content["files"]) if content["format"] == _FORMAT else None
    except (ValueError, KeyError, TypeError):
        files = None
    if files is None:
        raise UserError(f"{path.name} is not a lock file of this program")
    for name, record in files.items():
        known = isinstance(record, dict) and re.fullmatch("[0-9a-f]{64}", str(record.get("sha256")))
        if not known or safe_name(name) != name:
            raise UserError(f"{path.name} is damaged: no SHA-256 for {name!r}")
    return files


def record(folder: Path, name: str, sha256: str, source: str) -> None:
    """Write down that ``folder``/``name`` has this checksum and came from ``source``."""
    path = folder / NAME
    files = {**read(path), name: {"sha256": sha256, "source": source}}
    write_whole(path, json.dumps({"format": _FORMAT, "files": dict(sorted(files.items()))}, indent=1) + "\n")


def state(folder: Path, name: str) -> str:
    """One of missing, recorded, changed (since it was recorded), and own (there, but not by this program)."""
    path = folder / name
    if not path.is_file():
        return "own" if (path.parent / "checkpoint" / path.name).is_file() else "missing"
    known = read(folder / NAME).get(name)
    if known is None:
        return "own"
    return "recorded" if sha256_of(path) == known["sha256"] else "changed"
