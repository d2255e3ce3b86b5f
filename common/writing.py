"""Files that are there whole or not at all."""

import os
import re
from pathlib import Path

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # the names of files that `write_whole` has not finished


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file beside ``path`` (text as UTF-8), flush it to disk, then rename it.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` then still holds what it held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
