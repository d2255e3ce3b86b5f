"""A checksum inside a file, of all of its bytes but the checksum's own: a damaged file is told from one of others."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError

NAME, UNKNOWN = "sha256", 64 * "0"  # under which it stands in a file, and what stands there while it is computed

Entry = Callable[[str], bytes]  # the checksum as it stands in a file


def sealed(content: bytes, entry: Entry, beside: bytes = b"") -> bytes:
    """A file's bytes, written with ``UNKNOWN``, with the checksum in its place.

    Args:
        beside: the bytes of a second file that belongs to it.
    """
    return content.replace(entry(UNKNOWN), entry(_digest(content, beside)))


def check(path: Path, what: str, content: bytes, entry: Entry, beside: bytes = b"") -> None:
    """
    Raises:
        UserError: there is no checksum in the file, which is then not ``what``, or its bytes are not as they were.
    """
    before, after = entry(UNKNOWN).split(UNKNOWN.encode())
    found = re.search(re.escape(before) + b"([0-9a-f]{64})" + re.escape(after), content)
    if found is None:
        raise UserError(f"{path}: not {what} of this program; expected one of tools/export.py")
    digest = found[1].decode()
    if _digest(content.replace(entry(digest), entry(UNKNOWN)), beside) != digest:
        raise UserError(f"{path}: damaged, its checksum does not fit its content; copy or export it again")


def _digest(content: bytes, beside: bytes) -> str:
    return hashlib.sha256(content + beside).hexdigest()
