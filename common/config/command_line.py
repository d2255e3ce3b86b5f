"""The command line of a task's program: its flags, its help, and what is said of flags that it does not have."""

import argparse
import difflib
import re
from collections.abc import Collection
from typing import Any, NoReturn

from common.config.groups import UNUSED
from common.config.tasks import Task
from common.errors import UserError
from common.flags import Flag
from common.quantizers import METHODS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown and unknown[1].split():
            word = next((w for w in unknown[1].split() if w.startswith("-")), unknown[1].split()[0])
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(word.split("=")[0], known, 1, 0.5)
            message = f"unknown flag {word}" + (f"; did you mean {near[0]}?" if near else "; --help lists the flags")
        raise UserError(message)


def _methods_and_bits() -> str:
    """A line per method for --help: the widths that it defines."""
    rows = [("--method", "--bitW", "--abitW")]
    for name, method in METHODS.items():
        real = method.reported_weight_bits
        weights = _widths_text(method.weight_bits) + (f" (has {real})" if real else "")
        rows.append((name, weights, _widths_text(method.act_bits)))
    lines = [f"  {name:<10} {weights:<16} {inputs}" for name, weights, inputs in rows]
    return "\n".join(["methods, and the bits that they define; 32 is float:", *lines])


def _widths_text(bits: Collection[int]) -> str:
    """Widths as a range where they are one.

    >>> _widths_text([2, 3, 4]), _widths_text([2, 4])
    ('2 to 4', '2, 4')
    """
    if list(range(min(bits), max(bits) + 1)) == sorted(bits):
        return f"{min(bits)} to {max(bits)}"
    return ", ".join(map(str, sorted(bits)))


def parser_of(task: Task, flags: Collection[Flag]) -> argparse.ArgumentParser:
    """Every flag takes part with the reader of its own; what was not typed is absent from the result."""
    parser = _Parser(
        description=f"{task.name}: {task.model}",
        epilog=_methods_and_bits(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for flag in flags:
        settings: dict[str, Any] = {"type": str if flag.read_all else flag.take}
        if flag.choices:
            settings["metavar"] = f"{{{','.join(flag.choices)}}}"
        if flag.nargs:
            settings["nargs"] = flag.nargs
        if flag.nargs == "?":
            settings["const"] = flag.const
        default = f" (default: {flag.default})" if flag.default not in (None, "") else ""
        parser.add_argument(*flag.spellings, dest=flag.name, help=flag.help + default.replace("%", "%%"), **settings)
    for name in set(UNUSED) - {flag.name for flag in flags}:
        parser.add_argument(f"--{name}", dest=name, nargs="*", help=argparse.SUPPRESS)
    return parser
