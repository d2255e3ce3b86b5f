"""A run's folder on disk: whose it is, who holds it, and what may be removed from it."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.reading import read_json
from common.writing import TEMPORARY

PROGRAM = "alignq"  # in config.json: says that the folder is ours
CONFIG, LOCK, CHECKPOINTS = "config.json", ".lock", "checkpoint"
SET_ASIDE, DISCARDED = ".alignq_set_aside", ".alignq_discarded"  # what --reset removes, before the run begins and then
FOLDERS, FILES = (CHECKPOINTS, "run"), re.compile(rf".+\.(json|jsonl|txt|log|npz|png|tsv|pt)|{re.escape(LOCK)}")
FIRST_TRACES = re.compile(  # of a run before it begins
    rf"{re.escape(LOCK)}|{CHECKPOINTS}|split_[^/]*\.tsv|{re.escape(DISCARDED)}"
)


class RunFolder:
    """Held by one process until ``close``. A folder with files that no run made is never taken.

    Until ``adopt`` nothing that was there is lost: a run that is refused leaves it as it was.

    Raises:
        UserError: it is a file, cannot be made, holds other things than a run does, or another process holds it.
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
            self._check_kinds()
            self._lock = self._hold()
            self._put_back()  # of a run that was killed before it began
            self._discard()
        except OSError as error:
            raise UserError(f"--job_dir {path}: {error.strerror}; expected a folder that can be written") from None

    def is_ours(self) -> bool:
        return any(_marked(place / CONFIG) for place in (self.path, self.path / SET_ASIDE))

    def _is_blank(self) -> bool:
        """Whether it holds nothing, or what a run that was killed before it began left."""
        names = {entry.name for entry in self.path.iterdir()}
        inner = self.path / CHECKPOINTS
        return all(FIRST_TRACES.fullmatch(name) for name in names) and not (inner.is_dir() and any(inner.iterdir()))

    def _check_kinds(self) -> None:
        """What has a name that a run gives must be what the run would find or write there."""
        inner = self.path / CHECKPOINTS
        for entry in (*self.path.iterdir(), *(inner.iterdir() if inner.is_dir() else ())):
            for names, fits, what in (
                (entry.name in FOLDERS, entry.is_dir, "a folder"),
                (FILES.fullmatch(entry.name), entry.is_file, "an ordinary file"),
            ):
                if names and not fits():
                    place = entry.relative_to(self.path)
                    raise UserError(
                        f"--job_dir {self.path}: {place} in it is not {what}, as runs have it; move it away"
                    )

    def _hold(self) -> Any:
        while True:
            lock = open(self.path / LOCK, "a", opener=_without_waiting)  # noqa: SIM115 -- held as long as the job
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
        """Let it look empty for ``reset``, and have the folder of checkpoints.

        Args:
            refuse: why what is in it must not be touched, or "".
        Raises:
            UserError: with that reason.
        """
        if reset:
            (self.path / SET_ASIDE).mkdir()
            for entry in list(self.path.iterdir()):
                if entry.name not in (LOCK, SET_ASIDE):
                    entry.rename(self.path / SET_ASIDE / entry.name)
        elif reason := refuse():
            raise UserError(reason)
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)

    def adopt(self) -> None:
        """From here on what is in it stays when it is closed; what --reset or a killed run left over is removed."""
        self._adopted = True
        if (self.path / SET_ASIDE).is_dir():
            (self.path / SET_ASIDE).rename(self.path / DISCARDED)
        self._discard()
        for folder in (self.path, self.path / CHECKPOINTS):
            for entry in folder.iterdir():
                if TEMPORARY.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink():
                    entry.unlink()

    def close(self) -> None:
        """Let go of it. If nothing adopted it, take back what this process put into it, and the folders it made."""
        if self._lock is None:
            return
        if not self._adopted:
            self._take_back()
        self._lock.close()
        self._lock = None

    def _take_back(self) -> None:
        aside = (self.path / SET_ASIDE).is_dir()
        for entry in list(self.path.iterdir()) if self._was_blank or aside else ():
            if FIRST_TRACES.fullmatch(entry.name) and entry.is_file() and (self._was_blank or entry.name != LOCK):
                entry.unlink()
        self._put_back()
        for folder in (self.path / CHECKPOINTS, *self._made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _put_back(self) -> None:
        """What --reset set aside, to its place."""
        aside, checkpoints = self.path / SET_ASIDE, self.path / CHECKPOINTS
        if not aside.is_dir():
            return
        if checkpoints.is_dir() and not any(checkpoints.iterdir()):
            checkpoints.rmdir()
        for entry in list(aside.iterdir()):
            entry.replace(self.path / entry.name)
        aside.rmdir()

    def _discard(self) -> None:
        if (self.path / DISCARDED).is_dir():
            shutil.rmtree(self.path / DISCARDED)


def _without_waiting(path: str, flags: int) -> int:
    """An opener that a pipe does not keep."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def _marked(config: Path) -> bool:
    """Whether a file is the configuration that a run of this program wrote."""
    try:
        return read_json(config, "the config.json of a job").get("program") == PROGRAM
    except UserError:
        return False
