"""A run's folder on disk: whose it is, who holds it, and what may be removed from it."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.writing import TEMPORARY

PROGRAM = "alignq"  # in config.json: says that the folder is ours
CONFIG, LOCK = "config.json", ".lock"
CHECKPOINTS = "checkpoint"
FIRST_TRACES = re.compile(rf"{re.escape(LOCK)}|logger\.log|{CHECKPOINTS}|split_[^/]*\.tsv")  # of a run before it begins


class RunFolder:
    """Held by one process until ``close``. A folder with files that no run made is never taken.

    Raises:
        UserError: it is a file, cannot be made, or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._adopted = False
        self._lock: Any = None
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"--job_dir {path}: a file; expected a folder")
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            self._was_blank = self._is_blank()
            if not self._was_blank and not self.is_ours():
                raise UserError(
                    f"--job_dir {path}: holds files that no run of this program made, and is left alone; expected an "
                    "empty folder, a new one or that of a run"
                )
            self._lock = self._hold()
        except OSError as error:
            raise UserError(f"--job_dir {path}: {error.strerror}; expected a folder that can be written") from None

    def is_ours(self) -> bool:
        try:
            content = json.loads((self.path / CONFIG).read_text())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and content.get("program") == PROGRAM

    def _is_blank(self) -> bool:
        """Whether it holds nothing, or what a run that was killed before it began left."""
        names = {entry.name for entry in self.path.iterdir()}
        inner = self.path / CHECKPOINTS
        return all(FIRST_TRACES.fullmatch(name) for name in names) and not (inner.is_dir() and any(inner.iterdir()))

    def _hold(self) -> Any:
        while True:
            lock = open(self.path / LOCK, "w")  # noqa: SIM115 -- held as long as the job
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise UserError(
                    f"--job_dir {self.path}: another run is writing there; wait for it or choose another"
                ) from None
            try:  # a refused run may have removed it between the two calls
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(self.path / LOCK)):
                    return lock
            except FileNotFoundError:
                pass
            lock.close()

    def prepare(self, reset: bool, refuse: Callable[[], str]) -> None:
        """Empty it for ``reset``; otherwise remove what a killed run left half-written.

        Args:
            refuse: why what is in it must not be touched, or "".
        Raises:
            UserError: with that reason.
        """
        if reset:
            for entry in self.path.iterdir():
                if entry.name != LOCK:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        elif reason := refuse():
            raise UserError(reason)
        checkpoints = self.path / CHECKPOINTS
        checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, checkpoints):
            for entry in folder.iterdir():
                if TEMPORARY.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
                    entry.unlink()

    def adopt(self) -> None:
        """From here on what is in it stays when it is closed."""
        self._adopted = True

    def close(self) -> None:
        """Let go of it. If nothing adopted it, take back what this process put into it, and the folders it made."""
        if self._lock is None:
            return
        if self._was_blank and not self._adopted:
            self._take_back()
        self._lock.close()
        self._lock = None

    def _take_back(self) -> None:
        for entry in list(self.path.iterdir()):
            if FIRST_TRACES.fullmatch(entry.name) and entry.is_file():
                entry.unlink()
        for folder in (self.path / CHECKPOINTS, *self._made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
