"""A folder of results: one process at a time, and one setting for all of its runs."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.reading import read_json
from common.writing import write_whole


@contextmanager
def hold(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold a folder of results for this process.

    Raises:
        UserError: another process is running there, its runs were made with other settings and do not compare, or
            settings.json is damaged.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another such program is running there; wait, or choose another --out") from None
        path = folder / "settings.json"
        earlier = _read(path) if path.exists() else settings
        if earlier != settings:
            text = " and ".join(" ".join(f"{k} {v}" for k, v in s.items()) for s in (earlier, settings))
            raise UserError(f"{folder} holds runs with other settings ({text}); choose another --out")
        write_whole(path, json.dumps(settings, indent=1) + "\n")
        yield


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "the settings of earlier runs: choose another --out, or remove the file")
