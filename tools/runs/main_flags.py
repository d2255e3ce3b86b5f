"""Flags of main.py that a tool takes as well: read as there, or passed on as typed."""

from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence

from common.config.options import all_flags, flags_in_effect
from common.config.tasks import Task
from common.errors import UserError
from common.flags import Flag

WITHOUT_EFFECT = {  # on a result; what is evaluated beside it may come later
    *("data_dir", "download", "device", "gpus", "num_workers", "print_freq", "save_every", "adapt"),
}


def read_as_there(flags: Mapping[str, Flag]) -> dict[str, Flag]:
    """Flags by every spelling without dashes."""
    return {word[2:]: flag for flag in flags.values() for word in flag.spellings}


def kept_as_typed(tasks: Sequence[Task]) -> dict[str, Flag]:
    """Every flag that has a use in one of the tasks, by every spelling without dashes; its value stays a word."""
    flags = read_as_there({name: flag for task in tasks for name, flag in all_flags(task).items()})
    return {
        word: Flag(flag.name, None, nargs="?" if flag.nargs == "?" else None, const=True)
        for word, flag in flags.items()
    }


def flag_names(task: Task) -> set[str]:
    """Every spelling, without dashes, of the flags that a run of the task by its own method and objective has."""
    return set(read_as_there(flags_in_effect(task, "ours")))


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
    known = read_as_there({name: flag for task in tasks for name, flag in all_flags(task).items()})
    meant = {name: known[name[2:]] for name in passed if name[2:] in known and name[2:] not in WITHOUT_EFFECT}
    return {name: _meaning(flag, passed[name]) for name, flag in meant.items()}


def _meaning(flag: Flag, word: str) -> str:
    try:
        return str(flag.read_all([word]) if flag.read_all is not None else flag.read(word))
    except (ArgumentTypeError, ValueError):
        return word  # which main.py will refuse
