"""Rows of the README's tables: trained in the right order, and set in the tables' layout beside published figures.

    python tools/reproduce.py --task dann_office --rows A-W,D-W --bits 8,5,4

Every row is a run of the task's own main.py with the row's hyperparameters. A finished one is not run again, and an
interrupted one resumes: the same command continues a table.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from runs import disk, readme_table, result_tables  # noqa: E402
from runs.batch import end, hold, train  # noqa: E402
from runs.cells import typed  # noqa: E402
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
from runs.rows import Run, plan, select, tasks_named  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402

TYPED_HERE = {  # flags of main.py that this program gives every run itself
    *("method", "grad_approx", "bitW", "abitW", "src_data", "tgt_data", "model", "target_model", "job_dir"),
    *("source_dir", "source_file", "pretrained", "config", "resume", "reset", "test_only"),
}


def reproduce(
    *words: Any,
    task: Any = "all",
    rows: Any = "",
    bits: Any = "",
    demo: bool = False,
    ablation: bool = False,
    no_crp: bool = False,
    fetched: bool = False,
    workers: int = 1,
    launcher: str = "local",
    slurm: Any = "",
    out: str = "results/reproduce",
    dry_run: bool = False,
    **flags: Any,
) -> None:
    """Train rows of the README's tables, 32 bits first, and write each table as OUT/TASK/table.md.

    Any other flag of a task's main.py (--num_epochs, --img_size, --seed ...) is passed to the runs that have it.

    Args:
        task: resnet20, resnet56, densenet40, dann_digits, dann_office, dsan_office; several with commas; all.
        rows: as the tables' first column calls them, such as A-W,D-W or MNIST-MNISTM or ResNet-20 (default: all).
        bits: bit-widths of the tables, such as 8,5,4 (default: all); rows that these start from are run too.
        demo: train on the demo data, with its presets.
        ablation: every row with DAQ alone, then with the gradient approximation, then with CRP where the task has it.
        no_crp: the Office-31 rows without CRP.
        fetched: start from the published 32-bit files (tools/fetch_pretrained.py), not from networks trained here.
        workers: runs at a time; of several CUDA devices each gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        out: folder of the results; each task has a folder in it, with _demo behind its name for demo data.
        dry_run: print the commands that are left to run, in order, and run nothing.
    """
    switches = {"demo": demo, "ablation": ablation, "no_crp": no_crp, "fetched": fetched, "dry_run": dry_run}
    check(words, "--task dann_office", launcher, **switches)
    if demo and fetched:
        raise UserError("--fetched: the published files are of the real data; leave --demo out")
    at_once = positive("workers", workers)
    tasks = tasks_named(words_of(task))
    chosen = select(tasks, words_of(rows), [positive("bits", word) for word in words_of(bits)])
    runs = plan(chosen, ablation, not no_crp, fetched)
    known = {name for run in runs for name in flag_names(run.task)}
    own = [key for key in reproduce.__annotations__ if key not in ("words", "flags", "return")]
    passed = passed_on(flags, known, own, TYPED_HERE)
    folders = {name: Path(str(out)) / (f"{name}_demo" if demo else name) for name in tasks}
    demo_flag = ["--demo"] if demo else []
    left = {}
    for run in runs:
        folder = folders[run.task.name]
        if run.summary(folder) is None:
            left[run] = [*demo_flag, *run.arguments(folder, passed)]
    kept, most = disk.needed(left, at_once)
    about_disk = disk.statement(Path(str(out)), kept, most, len(left))
    if dry_run:
        commands = [typed(main_of(run.task), words) for run, words in left.items()]
        print("\n".join([f"# {about_disk}", *(commands or ["# every row is finished"])]))
        return
    disk.check_free(Path(str(out)), most)
    print(about_disk, file=sys.stderr)
    jobs = Launcher(launcher, Path(str(out)).resolve() / "submitit" / str(os.getpid()), submitit_options(slurm))
    with ExitStack() as held:
        for name in dict.fromkeys(run.task.name for run in runs):
            with_effect = {k: v for k, v in passed.items() if k[2:] in _flags_of(name) - WITHOUT_EFFECT}
            held.enter_context(hold(folders[name], {"task": name, "demo": demo, "fetched": fetched, **with_effect}))
        for run in runs:
            if run not in left:  # a call that was interrupted may have left its files
                run.trim(folders[run.task.name])
        by_name = {f"{run.task.name}/{run.name}": run for run in left}
        commands = [
            Command(
                name=name,
                argv=[sys.executable, str(main_of(run.task)), *left[run]],
                log=folders[run.task.name].resolve() / "logs" / f"{run.name}.log",
                folder=Path.cwd(),
                needs=f"{run.task.name}/{run.source.name}" if run.source else None,
            )
            for name, run in by_name.items()
        ]

        def trim(command: Command) -> None:
            run = by_name[command.name]
            run.trim(folders[run.task.name])

        outcomes = train(commands, jobs, at_once, trim)
        for name in dict.fromkeys(run.task.name for run in runs):
            print("\n" + write(folders[name], [run for run in runs if run.task.name == name], demo))
    end(outcomes, Path(str(out), "TASK", "logs"))


def _flags_of(name: str) -> set[str]:
    return {flag for task in programs()[name] for flag in flag_names(task)}


def write(folder: Path, runs: list[Run], demo: bool) -> str:
    """Write results.jsonl and table.md of one task; returns the table."""
    found = [entry for run in runs if (entry := readme_table.result(run, folder)) is not None]
    result_tables.merge(folder / "results.jsonl", found)
    table = readme_table.markdown(runs[0].task, runs, {entry["cell"]: entry for entry in found}, demo)
    (folder / "table.md").write_text(table)
    return f"{table}\n{folder / 'table.md'}"


if __name__ == "__main__":
    run_tool(reproduce)
