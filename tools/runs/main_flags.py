"""Flags of main.py that a tool takes as well: read as there, or passed on as typed."""

from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence

from common.config import options
from common.config.tasks import Task
from common.errors import UserError
from common.flags import Flag, epochs

WITHOUT_EFFECT = {"data_dir", "download", "device", "gpus", "num_workers", "print_freq", "save_every"}  # on a result
CRP_FLAGS = {flag.key for flag in options.FLAGS if flag.crp}


def read_as_there(names: Collection[str]) -> dict[str, Flag]:
    """The flags of these names, by every spelling without dashes."""
    return _by_spelling([flag for flag in options.FLAGS if flag.key in names], typed=True)


def kept_as_typed(tasks: Sequence[Task]) -> dict[str, Flag]:
    """Every flag that has a use in one of the tasks, by every spelling without dashes; its value stays a word."""
    return _by_spelling([flag for task in tasks for flag in options.flags_of(task) if not flag.unused], typed=False)


def _by_spelling(flags: Sequence[options.Flag], typed: bool) -> dict[str, Flag]:
    found: dict[str, Flag] = {}
    for flag in flags:
        switch = "?" if flag.nargs == "?" else None
        read = (lambda text: epochs([text])) if flag.key == "lr_decay_steps" else flag.read
        choices = flag.choices if typed else None
        one = Flag(flag.key, flag.default, read if typed else str, choices=choices, nargs=switch, const=True)
        found |= {word[2:]: one for word in flag.names.split()}
    return found


def flag_names(task: Task) -> set[str]:
    """Every spelling of the flags of a task's main.py that have a use, without the dashes."""
    return set(kept_as_typed([task]))


def passed_on(flags: Mapping[str, object], tasks: Sequence[Task], set_here: Collection[str]) -> dict[str, str]:
    """Further flags as main.py reads them, by name.

    Args:
        flags: as typed. tasks: of the runs. set_here: flags that the tool gives every run itself.
    Raises:
        UserError: none of the tasks has such a flag, or the tool sets it itself.
    """
    known = kept_as_typed(tasks)
    for name in flags:
        if name in set_here:
            raise UserError(f"--{name}: this program sets it for every run")
        if name not in known:
            raise UserError(f"unknown flag --{name}: none of these runs has it")
    return {f"--{name}": str(flags[name]) for name in sorted(flags)}


def with_effect(passed: Mapping[str, str], tasks: Sequence[Task]) -> dict[str, str]:
    """Those of the flags passed on that make a result another one, as main.py reads them: 1e-2 is 0.01."""
    known = kept_as_typed(tasks).keys() - WITHOUT_EFFECT
    read = read_as_there(known)
    return {name: _meaning(read[name[2:]], word) for name, word in passed.items() if name[2:] in known}


def _meaning(flag: Flag, word: str) -> str:
    try:
        return str(flag.read(word))
    except (ArgumentTypeError, ValueError):
        return word  # which main.py will refuse
