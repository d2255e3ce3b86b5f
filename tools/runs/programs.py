"""The programs of the task folders, as their main.py describe themselves."""

import runpy
from functools import cache
from pathlib import Path

from common.config.tasks import Task
from common.data.locate import REPOSITORY


@cache
def programs() -> dict[str, list[Task]]:
    """By task name: its folders, the one without relation preservation (CRP) first."""
    found: dict[str, list[Task]] = {}
    for path in sorted([*REPOSITORY.glob("single_domain/*/main.py"), *REPOSITORY.glob("cross_domain/*/*/main.py")]):
        task = runpy.run_path(str(path))["TASK"]
        found.setdefault(task.name, []).append(task)
    return {name: sorted(tasks, key=lambda task: task.crp) for name, tasks in found.items()}


def main_of(task: Task) -> Path:
    return task.folder / "main.py"
