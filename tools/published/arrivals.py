"""How a file becomes one that the programs find: complete, with the right checksum, loadable, recorded, then moved."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from common.config.tasks import Task
from common.data.download import lock, sha256_of
from common.errors import UserError
from tools.published import ledger
from tools.published.layout import check


class Arrivals:
    """Files on their way into a task's folder, which this process holds meanwhile.

    Attributes:
        staging: where they are until they are moved. What a broken transfer leaves there is kept for the next attempt.
        refused: (name, why) of those that were not let in.
    """

    def __init__(self, task: Task, folder: Path, replace: bool = False) -> None:
        self.task, self.folder, self.replace = task, folder, replace
        self.staging = folder / ".fetching"
        self.refused: list[tuple[str, str]] = []
        self._held = ExitStack()

    def __enter__(self) -> "Arrivals":
        self._held.enter_context(lock(self.folder))
        self.staging.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if not any(self.staging.rglob("*.part")):
            shutil.rmtree(self.staging)
        self._held.close()

    def take(
        self, name: str, source: str, bring: Callable[[Path], None], sha256: str | None = None, again: bool = False
    ) -> None:
        """Let a file in, or note in ``refused`` why not.

        Args:
            name: what it is to be called in the folder.
            source: where it comes from, for the record.
            bring: writes it to the path it is given, or raises UserError.
            sha256: what its checksum must be, where that is known.
            again: bring it even if one with a recorded checksum is there.
        """
        try:
            self._take(name, source, bring, sha256, again)
        except UserError as error:
            self.refused.append((name, str(error)))

    def _take(self, name: str, source: str, bring: Callable[[Path], None], sha256: str | None, again: bool) -> None:
        state = ledger.state(self.folder, name)
        known = ledger.read(self.folder / ledger.NAME).get(name, {}).get("sha256")
        if state == "recorded" and not again and sha256 in (None, known):
            print(f"{self.task.name}: {name}  here")
            return
        if state in ("own", "changed") and not self.replace:
            what = "another file" if state == "own" else "one that changed since it was fetched"
            raise UserError(f"{what} is in its place and was left there (--replace replaces it)")
        staged = self.staging / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        bring(staged)
        try:
            found = sha256_of(staged)
            if sha256 not in (None, found):
                raise UserError(f"what arrived has sha256 {found}, expected {sha256}")
            if known not in (None, found) and not self.replace:
                raise UserError(f"it has sha256 {found}, but {known} was recorded before (--replace accepts it)")
            report = check(self.task, name, staged)
            ledger.record(self.folder, name, found, source)
            _move(staged, self.folder / name)
        finally:
            staged.unlink(missing_ok=True)
        print(
            "; ".join([f"{self.task.name}: {name}  arrived, {len(report.loaded)} tensors", *report.lines(staged)[1:]]),
            flush=True,
        )


def _move(staged: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    staged.chmod(0o666 & ~mask)  # a temporary file is readable by its owner alone
    os.replace(staged, target)
