"""What the runner is given: the runs that are wanted, and how they are to be started."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from common.config.tasks import Task
from common.flags import count, number, shown

BEST = "checkpoint/model_best.pt"  # of a job
SUBMITIT_NAMES = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name")


@dataclass(frozen=True, eq=False)
class Planned:
    """A run of a task's main.py.

    Attributes:
        name: of its job folder in ``folder``, which is a folder of results.
        arguments: flags of main.py for what is left of it; empty: it is finished.
        source: name of the run in the same folder that it starts from; None: of none.
    """

    name: str
    task: Task
    folder: Path
    arguments: Sequence[str]
    source: str | None = None

    @property
    def job(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True)
class Plan:
    """What a tool wants to be run.

    Attributes:
        runs: each after the one that it starts from.
        settings: by folder of results, what must be the same in a later call.
        collect: writes the results in a folder and returns what to print; None: there are none.
        out: the folder of all folders of results, or the only one.
        each: what a run is called.
        trims: a finished run keeps its best weights alone; the disk that this takes is foretold.
    """

    runs: Sequence[Planned]
    settings: Mapping[Path, dict[str, Any]]
    collect: Callable[[Path], str | None]
    out: Path
    each: Literal["cell", "row"]
    trims: bool = False


@dataclass(frozen=True)
class Launch:
    """How a plan is to be run: ``workers`` at a time (None: 1, or all with Slurm), and where."""

    workers: int | None = None
    launcher: Literal["local", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False


def slurm_parameters(text: str) -> dict[str, Any]:
    """partition=gpu,timeout_min=240 as parameters of submitit's executor."""
    parameters: dict[str, Any] = {}
    for word in text.split(","):
        name, sign, value = (part.strip() for part in word.partition("="))
        if not (name and sign and value):
            raise ArgumentTypeError(f"expected name=value, such as partition=gpu,timeout_min=240, not {shown(text)}")
        prefix = "" if name in SUBMITIT_NAMES or name.startswith("slurm_") else "slurm_"
        parameters[prefix + name] = count(value) if value.isdecimal() else value
    return parameters


Slurm = Annotated[dict[str, Any], slurm_parameters]
Workers = Annotated[int, number(int, 1, 1000)]
