"""All methods at several bit-widths under identical conditions: trained, tabled, drawn.

    python tools/compare.py --task resnet20 --methods all --bits 8,4,3,2 --seeds 3 --demo

Every cell (a method, a bit-width, a seed) is a run of the task's own main.py. A finished one is not run again, and an
interrupted one resumes: the same command continues a comparison.
"""

import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from runs import result_tables  # noqa: E402
from runs.batch import end, hold, train  # noqa: E402
from runs.cells import FLOAT_BITS, VARIANTS, plan, typed  # noqa: E402
from runs.command_line import (  # noqa: E402
    WITHOUT_EFFECT,
    check,
    flag_names,
    passed_on,
    positive,
    submitit_options,
    words_of,
)
from runs.launcher import Command, Launcher  # noqa: E402
from runs.programs import main_of, programs  # noqa: E402

from common.config.tasks import Task  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.quantizers import METHODS  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402

TYPED_HERE = {  # flags of main.py that this program gives every run itself
    *("method", "bitW", "abitW", "seed", "job_dir", "source_dir", "source_file", "pretrained", "config"),
    *("resume", "reset", "test_only"),
}


def compare(
    *words: Any,
    task: str = "resnet20",
    methods: Any = "all",
    bits: Any = "8,4,3,2",
    seeds: Any = 3,
    demo: bool = False,
    chain: bool = False,
    shift: bool = False,
    workers: int | None = None,
    launcher: str = "local",
    slurm: Any = "",
    out: str | None = None,
    num_epochs: int | None = None,
    dry_run: bool = False,
    **flags: Any,
) -> None:
    """Train the float network once per seed, then every method at every bit-width from it; write a table and a picture.

    Any other flag of the task's main.py (--lr, --data_dir, --select ...) is passed to every run.

    Args:
        task: a folder of single_domain: resnet20, resnet56, densenet40.
        methods: names with commas between; all: every registered method; ours-ste: ours with --grad_approx ste.
        bits: bit-widths of weights and activations; where a method does not define one, the table has a dash.
        seeds: how many: 3 is 0, 1 and 2. With commas, the seeds themselves.
        demo: train on the demo data.
        chain: start from the next wider width of the README's table (32, 8, 4, 3, 2) and not from float; widths on the
            way are trained even where they were not asked for.
        shift: also evaluate the best epoch's networks on corrupted test images.
        workers: runs at a time (default: 1; all with Slurm); of several CUDA devices each worker gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        out: folder of the results (default: results/compare/TASK, with _demo behind it for demo data).
        num_epochs: epochs of every run (default: the table's, or the demo preset's).
        dry_run: print the commands that are left to run, and run nothing.
    """
    check(words, "--task resnet20", launcher, demo=demo, chain=chain, shift=shift, dry_run=dry_run)
    described, names, widths, numbers = task_of(task), method_names(methods), bit_widths(bits), seed_list(seeds)
    program = main_of(described)
    if num_epochs is not None:
        flags = {"num_epochs": positive("num_epochs", num_epochs), **flags}
    own = [key for key in compare.__annotations__ if key not in ("words", "flags", "return")]
    passed = passed_on(flags, flag_names(described), own, TYPED_HERE)
    common = (["--demo"] if demo else []) + [word for pair in passed.items() for word in pair]
    cells = plan(task, names, widths, numbers, chain)
    if len(cells) == len(numbers):
        raise UserError(f"--methods {','.join(names)} --bits {','.join(map(str, widths))}: none of them is defined")
    folder = Path(str(out)) if out else Path("results", "compare", f"{task}_demo" if demo else task)
    left = {cell: [*common, *arguments] for cell in cells if (arguments := cell.arguments(folder, shift))}
    default = 1 if launcher == "local" else max(1, len(left))
    at_once = default if workers is None else positive("workers", workers)
    if dry_run:
        print("\n".join(typed(program, words) for words in left.values()) or "# every cell is finished")
        return
    jobs = Launcher(launcher, folder.resolve() / "logs" / "submitit" / str(os.getpid()), submitit_options(slurm))
    with hold(folder, {"task": task, "demo": demo, **{k: v for k, v in passed.items() if k[2:] not in WITHOUT_EFFECT}}):
        commands = [
            Command(
                name=cell.name,
                argv=[sys.executable, str(program), *words],
                log=folder.resolve() / "logs" / f"{cell.name}.log",
                folder=Path.cwd(),
                needs=cell.source,
            )
            for cell, words in left.items()
        ]
        outcomes = train(commands, jobs, at_once)
        finished = [row for cell in cells if (row := cell.row(folder)) is not None]
        if finished:
            print("\n" + result_tables.write(folder, finished, names, widths, len(numbers)))
            print(f"{folder / 'results.jsonl'}, table.md, accuracy.png")
    end(outcomes, folder / "logs")


def task_of(name: str) -> Task:
    known = {name: tasks[0] for name, tasks in programs().items() if tasks[0].kind == "single"}
    if name not in known:
        raise UserError(f"--task {name}: expected one of {', '.join(known)}")
    return known[name]


def method_names(methods: Any) -> list[str]:
    """The methods and variants asked for, each once, in the order of the registry and of the command."""
    known = [*METHODS, *VARIANTS]
    names = [name for word in words_of(methods) for name in (METHODS if word == "all" else [word])]
    for name in names:
        if name not in known:
            raise UserError(f"--methods {name}: expected all, or some of {', '.join(known)}")
    if not names:
        raise UserError(f"--methods: expected all, or some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def bit_widths(bits: Any) -> list[int]:
    widths = [positive("bits", word) for word in words_of(bits)]
    if not widths or FLOAT_BITS in widths:
        raise UserError(f"--bits {bits}: expected widths below 32 such as 8,4; the float network is always trained")
    return list(dict.fromkeys(widths))


def seed_list(seeds: Any) -> list[int]:
    words = words_of(seeds)
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {seeds}: expected how many, such as 3, or the seeds themselves, such as 0,1,2")
    listed = isinstance(seeds, (tuple, list)) or "," in str(seeds)
    numbers = list(dict.fromkeys(map(int, words))) if listed else list(range(int(words[0])))
    if not numbers:
        raise UserError("--seeds 0: expected 1 or more")
    return numbers


if __name__ == "__main__":
    run_tool(compare)
