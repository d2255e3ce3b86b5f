"""What the tools' command lines have in common: values as fire leaves them, and flags that are meant for main.py."""

import difflib
from collections.abc import Iterable
from typing import Any

from common.config.options import flags_of
from common.config.tasks import Task
from common.errors import UserError

WITHOUT_EFFECT = {"data_dir", "download", "device", "gpus", "num_workers", "print_freq", "save_every"}  # on a result
SUBMITIT_NAMES = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name")


def words_of(value: Any) -> list[str]:
    """What fire made of a,b,c: a tuple, a list, a number or a string."""
    values = value if isinstance(value, (tuple, list)) else str(value).split(",")
    return [word for word in (str(value).strip() for value in values) if word]


def positive(flag: str, value: Any) -> int:
    if not (str(value).isdecimal() and int(value) > 0):
        raise UserError(f"--{flag} {value}: expected a whole number, 1 or more")
    return int(value)


def check(words: tuple[Any, ...], example: str, launcher: str, **switches: Any) -> None:
    """Refuse what fire lets through.

    Raises:
        UserError: a word without a flag, an unknown launcher, or a switch with a value that is neither True nor False.
    """
    if words:
        raise UserError(f"{words[0]}: expected flags alone, such as {example}; --help lists them")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UserError(f"--{name} {value}: expected True, False or the flag alone")
    if launcher not in ("local", "slurm"):
        raise UserError(f"--launcher {launcher}: expected local or slurm")


def flag_names(task: Task) -> set[str]:
    """Every spelling of the flags of a task's main.py that have a use, without the dashes."""
    return {name[2:] for flag in flags_of(task) if not flag.unused for name in flag.names.split()}


def passed_on(flags: dict[str, Any], known: set[str], own: Iterable[str], set_here: set[str]) -> dict[str, str]:
    """Further flags as main.py reads them, by name.

    Args:
        flags: as typed. known: of main.py. own: of the program itself. set_here: those that it gives every run.
    Raises:
        UserError: neither the program nor main.py has such a flag, or the program sets it itself.
    """
    for name in flags:
        if name in set_here:
            raise UserError(f"--{name}: this program sets it for every run")
        if name not in known:
            near = difflib.get_close_matches(name, [*own, *sorted(known - set_here)], 1, 0.5)
            raise UserError(f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help"))
    return {f"--{name}": str(flags[name]) for name in sorted(flags)}


def submitit_options(slurm: Any) -> dict[str, Any]:
    """partition=gpu,timeout_min=240 as parameters of submitit's executor."""
    parameters: dict[str, Any] = {}
    for word in words_of(slurm):
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"--slurm {word}: expected name=value, such as partition=gpu,timeout_min=240")
        prefix = "" if name in SUBMITIT_NAMES or name.startswith("slurm_") else "slurm_"
        parameters[prefix + name] = int(value) if value.isdecimal() else value
    return parameters
