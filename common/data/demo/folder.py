"""A demo data set is a folder with a marker, made once and whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common.data.download import lock
from common.errors import UserError

MARKER = "DEMO.txt"


def is_demo(folder: Path | str) -> bool:
    """Whether `folder` was made by a demo generator and not published by anyone."""
    return (Path(folder) / MARKER).is_file()


def build_once(folder: Path | str, about: str, fill: Callable[[Path], None]) -> Path:
    """Make the demo set `folder` unless it is there; made by an older generator, it is made again.

    `fill` writes into an empty folder beside the final one, which is renamed when it is complete: a killed run leaves
    no half of a set. Of several processes one builds and the others wait.

    Args:
        folder: where the set belongs.
        about: what the data are, with the generator's version: the text of the marker. A changed text rebuilds.
        fill: writes the set's files into the folder that it is given.
    Returns:
        `folder`
    Raises:
        UserError: `folder` holds something that no demo generator made, or cannot be written.
    """
    folder = Path(folder)
    try:
        if _is_current(folder, about):
            return folder
        with lock(folder.parent):
            if _is_current(folder, about):
                return folder
            if folder.exists() and not is_demo(folder):
                raise UserError(
                    f"{folder} holds data that are not the demo's; leave out --demo to train on them, or choose "
                    "another --data_dir"
                )
            building, outdated = (folder.with_name(f".{folder.name}.{what}") for what in ("building", "outdated"))
            for leftover in (building, outdated):  # of a killed run: whoever holds the lock is alone here
                shutil.rmtree(leftover, ignore_errors=True)
            building.mkdir()
            fill(building)
            (building / MARKER).write_text(about, encoding="utf-8")
            if folder.exists():
                os.rename(folder, outdated)
            os.rename(building, folder)
            shutil.rmtree(outdated, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"could not write the demo data {folder}: {error.strerror or error}; choose another --data_dir"
        ) from None
    return folder


def _is_current(folder: Path, about: str) -> bool:
    return is_demo(folder) and (folder / MARKER).read_text(encoding="utf-8") == about
