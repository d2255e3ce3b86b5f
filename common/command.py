"""The command ``alignq``: the tools and the tasks' programs, from any folder.

    alignq train resnet20 --demo --bitW 4

It imports nothing of them. The program takes this process's place, so ``alignq export`` is ``python tools/export.py``.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from common.data.locate import REPOSITORY
from common.errors import UserError
from common.flags import shown

TRAIN = "train"
TOOLS = {  # file in tools/, and what it does
    "compare": ("compare", "methods at several bit-widths under identical conditions: trained, tabled, drawn"),
    "reproduce": ("reproduce", "the paper's tables"),
    "report": ("report", "one HTML page of any set of runs"),
    "quantize": ("quantize", "a network of your own, from its float weights"),
    "realign": ("realign", "a shipped network to a new domain, without labels"),
    "export": ("export", "a checkpoint as a file to ship"),
    "evaluate": ("evaluate", "the accuracy of a shipped file"),
    "predict": ("predict", "the classes of images, by a shipped file"),
    "parity": ("parity", "whether the forms of a network to ship compute what was trained, layer by layer"),
    "fetch": ("fetch_pretrained", "the published weights"),
    "doctor": ("doctor", "what this machine has, and what is missing for which task"),
}


def tasks() -> dict[str, Path]:
    """Every task's program: resnet20, dann_digits/daq_crp. A cross-domain task by its name alone is its daq_crp."""
    found = {path.parent.name: path for path in REPOSITORY.glob("single_domain/*/main.py")}
    for path in REPOSITORY.glob("cross_domain/*/*/main.py"):
        task, variant = path.parts[-3:-1]
        found[f"{task}/{variant}"] = path
        if variant == "daq_crp":
            found[task] = path
    return dict(sorted(found.items()))


def help_text() -> str:
    lines = ["usage: alignq COMMAND ...", "", f"  {'train TASK':<12}train or evaluate a network; TASK is one of"]
    lines += [f"  {'':<12}  {name}" for name in tasks()]
    lines += [f"  {name:<12}{what}" for name, (_, what) in TOOLS.items()]
    return "\n".join([*lines, "", "alignq COMMAND --help, alignq train TASK --help: the flags"])


def program(words: list[str]) -> list[str]:
    """The program that the words name, and the words that are left for it.

    Raises:
        UserError: there is no such command or task.
    """
    command, *rest = words
    if command in TOOLS:
        return [str(REPOSITORY / "tools" / f"{TOOLS[command][0]}.py"), *rest]
    if command != TRAIN:
        raise UserError(f"{shown(command)}: expected one of {', '.join([TRAIN, *TOOLS])}")
    known = tasks()
    if not rest or rest[0] not in known:
        given = f"{shown(rest[0])}: " if rest else ""
        raise UserError(f"{TRAIN}: {given}expected a task, one of {', '.join(known)}")
    return [str(known[rest[0]]), *rest[1:]]


def as_typed(name: str) -> list[str]:
    """The words that run a tool from here: alignq NAME, or python and its file where alignq is not installed."""
    if shutil.which("alignq"):
        return ["alignq", name]
    return ["python", os.path.relpath(program([name])[0])]


def main() -> NoReturn:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help") or words in ([TRAIN, "-h"], [TRAIN, "--help"]):
        try:
            print(help_text(), flush=True)
        except BrokenPipeError:  # of a pipe such as "| head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    try:
        command = program(words)
        if not Path(command[0]).is_file():
            raise UserError(f"{command[0]} is not there; install the clone itself: python -m pip install -e .")
    except UserError as error:
        print(f"alignq: error: {error}", file=sys.stderr)
        sys.exit(2)
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
