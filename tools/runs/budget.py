"""What training every network of a comparison gets, and how its table says so."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.options import parse
from common.config.tasks import Task
from common.quantizers.rounding import FLOAT_BITS


@dataclass(frozen=True)
class Budget:
    """What all quantized networks get alike; the float networks keep the recipe of their task.

    Attributes:
        epochs_per_bit: epochs at each bit-width; None: the recipe's. schedule: of their learning rate.
        distill: whether the float network of its seed teaches each.
    """

    epochs_per_bit: int | None = None
    schedule: str = "steps"
    distill: bool = False

    def flags(self, task: Task, given: Sequence[str], teacher: Path) -> list[str]:
        """Flags of main.py for a quantized run; milestones that were not typed keep their place in the run.

        Args:
            given: its other flags. teacher: the file of the float network of its seed.
        """
        words = ["--distill", str(teacher)] if self.distill else []
        words += ["--schedule", self.schedule] if self.schedule != "steps" else []
        if self.epochs_per_bit is None:
            return words
        if self.schedule == "steps" and "--lr_decay_steps" not in given:
            recipe = parse(task, [*given, *words]).training
            share = self.epochs_per_bit / recipe.num_epochs
            words += ["--lr_decay_steps", str([max(1, round(epoch * share)) for epoch in recipe.lr_decay_steps])]
        return [*words, "--num_epochs", str(self.epochs_per_bit)]

    def settings(self) -> dict[str, Any]:
        """What of it differs from the recipe: runs with other settings do not compare."""
        default = Budget()
        return {name: value for name, value in vars(self).items() if value != getattr(default, name)}


def statement(rows: Iterable[dict[str, Any]]) -> str:
    """The budget of finished runs, lines of results.jsonl, as they record it."""

    def epochs(of: list[dict[str, Any]]) -> str:
        counts = sorted({entry["epochs"] for entry in of})
        return " or ".join(map(str, counts)) + f" epoch{'s' * (counts != [1])}"

    floats: list[dict[str, Any]] = []
    quantized: list[dict[str, Any]] = []
    for entry in rows:
        (floats if entry["bits"] == FLOAT_BITS else quantized).append(entry["protocol"])
    parts = [f"{epochs(floats)} in float"] if floats else []
    if quantized:
        schedules = " or ".join(sorted({entry.get("schedule", "steps") for entry in quantized}))
        parts.append(f"{epochs(quantized)} at each bit-width, learning rate by {schedules}")
        taught = {bool(entry.get("teacher")) for entry in quantized}
        parts += ["some" * (len(taught) > 1) + " taught by a float network"] if True in taught else []
    return f"Budget: {', then '.join(parts[:2])}{''.join(f', {part.strip()}' for part in parts[2:])}."
