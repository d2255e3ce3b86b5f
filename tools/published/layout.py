"""The published folders of weights: where each goes, what the tables start from, and what a file must hold."""

import re
from pathlib import Path, PurePosixPath

from common.config import recipes
from common.config.naming import PREFIXES, PUBLISHED_NAMES, file_of
from common.config.tasks import Task
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint
from tools.runs.programs import programs

SUFFIXES = (".pt", ".pth", ".tar")  # densenet_40.pt.tar is not an archive
TASKS = {name: programs()[name][-1] for name in recipes.TABLES}  # with CRP, where a task has it


def folder_of(task: Task, dest: Path | None = None) -> Path:
    """Where a task's files go: where its programs look, in all variants, or ``dest``/<task>."""
    return dest / task.name if dest else task.shared / "pretrained"


def wanted(task: Task) -> list[str]:
    """The files that the rows of the task's table start from, by their published names."""
    rows = recipes.TABLES[task.name]
    names = [file_of(task, row.pair, f"{row.pretrained_bits}bit") for row in rows]
    return [PUBLISHED_NAMES.get(name, name) for name in dict.fromkeys(names)]


def safe_name(path: str) -> str:
    """``path`` with forward slashes and without "./".

    Raises:
        UserError: it is absolute, names a drive, or leaves its folder.
    """
    name = path.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or not parts or ".." in parts or ":" in parts[0] or not name.isprintable():
        raise UserError(f"unsafe path {path!r}; expected one inside its folder, such as res20_32bit/model_best.pt")
    return "/".join(parts)


def is_weights(name: str) -> bool:
    return name.endswith(SUFFIXES)


def place(task: Task, path: str) -> str | None:
    """The part of a file's path that counts, from ours/, res20_.../ or dslr_webcam/ on; None: it has no such part.

    >>> place(TASKS["resnet20"], "resnet-20-cifar-10/pretrained/ours/res20_8bit/model_best.pt")
    'ours/res20_8bit/model_best.pt'
    """
    parts = safe_name(path).split("/")
    starts = (f"{task.stem}_",) if task.stem else tuple("_".join(pair) for pair in _pairs(task))
    index = next((i for i, part in enumerate(parts[:-1]) if part.startswith(starts)), None)
    if index is None:
        return None
    return "/".join(parts[index - 1 if index and parts[index - 1] in PREFIXES else index :])


def owner_of(path: str, tasks: list[Task]) -> tuple[Task, str]:
    """The one of ``tasks`` that a file obtained by hand belongs to, by its path, and what it is called there.

    Raises:
        UserError: none, or several (the two ResNet-50 tasks name their files alike).
    """
    places = [(task, name) for task in tasks if (name := place(task, path))]
    if not places:
        known = ", ".join(wanted(task)[0] for task in tasks)
        raise UserError(f"{path}: no part of this path says what it is; expected one such as {known}")
    if len(places) > 1:
        raise UserError(f"{path}: of {' or '.join(task.name for task, _ in places)}? Say which with --task")
    return places[0]


def check(task: Task, name: str, file: Path) -> checkpoint.LoadReport:
    """Load ``file``, which is to be called ``name``, into the task's network at the bits and for the pair it names.

    Raises:
        UserError: the programs would refuse it, too; says why.
    """
    width = re.search(r"_(\d+)bit", name)
    pair = next((pair for pair in _pairs(task) if "_".join(pair) in name), None)
    row = next((row for row in recipes.TABLES[task.name] if row.pair == pair), None)
    sides = {key: row.flags[key] for key in ("img_size",) if row and key in row.flags}
    bits = int(width[1]) if width else 32
    model = build_model(task.model, bitW=bits, abitW=bits, **sides)
    try:
        return checkpoint.load_weights(model, file)[0]
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{file}: ").replace("; fetch or train it again", "")) from None


def _pairs(task: Task) -> list[tuple[str, str]]:
    return list(dict.fromkeys(row.pair for row in recipes.TABLES[task.name] if row.pair))
