"""What rows of the README's tables may spend where the paper's epochs are out of reach: flags by task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import recipes
from common.errors import UserError
from common.flags import shown
from common.reading import read_json
from tools.runs.main_flags import flag_names
from tools.runs.programs import programs

_CIFAR = {"num_epochs": 30, "lr_decay_steps": "15,25"}
_OFFICE = {"num_epochs": 10, "lr_decay_steps": "6,8"}
SHORT: dict[str, dict[str, Any]] = {
    "resnet20": _CIFAR,
    "resnet56": _CIFAR,
    "densenet40": _CIFAR,
    "dann_digits": {"num_epochs": 6, "lr": 0.01, "momentum": 0.9, "lr_decay_steps": "5"},
    "dann_office": _OFFICE,
    "dsan_office": _OFFICE,
}


@dataclass(frozen=True)
class RowBudget:
    """A budget by its name, which folders and tables bear; without one rows spend what the tables say."""

    name: str = ""
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def passed(self, task: str, typed: Mapping[str, str]) -> dict[str, str]:
        """Flags of main.py for the runs of a task; typed ones win."""
        return {f"--{name}": str(value) for name, value in self.flags.get(task, {}).items()} | dict(typed)

    def said_of(self, task: str, epochs: Sequence[int]) -> str:
        """For a table's title: the budget and its epochs, beside those of the paper's rows."""
        if not self.name:
            return ""
        spent = " or ".join(map(str, sorted(set(epochs)))) or str(self.flags.get(task, {}).get("num_epochs", ""))
        whole = " or ".join(map(str, sorted({row.flags["num_epochs"] for row in recipes.TABLES[task]})))
        return f": budget {self.name}, {spent} epoch{'s' * (spent != '1')} where the paper has {whole}"


def budget_of(word: str | None) -> RowBudget:
    """short, or a JSON file of flags by task, such as {"dann_digits": {"num_epochs": 6}}.

    Raises:
        UserError: it is no such file, or names a task or a flag that is not there.
    """
    if word is None:
        return RowBudget()
    if word == "short":
        return RowBudget(word, SHORT)
    path = Path(word)
    content = read_json(path, 'short, or a file such as {"dann_digits": {"num_epochs": 6}}')
    for task, flags in content.items():
        if task not in recipes.TABLES or not isinstance(flags, dict):
            raise UserError(f"{path}: {shown(task)}: expected flags of {', '.join(recipes.TABLES)}")
        known = {name for one in programs()[task] for name in flag_names(one)}
        if unknown := sorted(flags.keys() - known):
            raise UserError(f"{path}: {task} has no flag {shown(unknown[0])}")
    return RowBudget(path.stem, content)
