"""Rows of the README's tables: trained in the right order, and set in the tables' layout beside published figures.

    python tools/reproduce.py --task dann_office --rows A-W,D-W --bits 8,5,4

Every row is a run of the task's own main.py with the row's hyperparameters. A finished one is not run again, and an
interrupted one resumes: the same command continues a table.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config.recipes import TABLES
from common.errors import UserError
from common.flags import Flag
from common.runs.annotations import NewFolder, one_of
from common.runs.tool import run_tool
from tools.arguments import Bits
from tools.runs.main_flags import kept_as_typed, passed_on
from tools.runs.plan import Launch, Slurm, Workers
from tools.runs.programs import programs
from tools.runs.reproduction import reproduction
from tools.runs.row_budget import budget_of
from tools.runs.runner import carry_out
from tools.runs.table_rows import select
from tools.runs.table_runs import runs_of

TYPED_HERE = {  # flags of main.py that this program gives every run itself
    *("method", "grad_approx", "bitW", "abitW", "src_data", "tgt_data", "model", "target_model", "job_dir"),
    *("source_dir", "source_file", "pretrained", "config", "resume", "reset", "test_only"),
}


def reproduce(
    *,
    task: tuple[Annotated[str, one_of("all", *TABLES)], ...] = ("all",),
    rows: tuple[str, ...] = (),
    bits: tuple[Bits, ...] = (),
    demo: bool = False,
    ablation: bool = False,
    no_crp: bool = False,
    fetched: bool = False,
    budget: str | None = None,
    workers: Workers | None = None,
    launcher: Literal["local", "slurm"] = "local",
    slurm: Slurm | None = None,
    out: NewFolder = Path("results/reproduce"),
    dry_run: bool = False,
    **flags: str,
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
        budget: short, for fewer epochs than the tables have, or a JSON file of flags by task, such as
            {"dann_digits": {"num_epochs": 6}}; folders and tables bear its name.
        workers: runs at a time (default: 1; all with Slurm); of several CUDA devices each gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        out: folder of the results; each task has a folder in it, with _demo behind its name for demo data, and then the
            budget's name.
        dry_run: print the commands that are left to run, in order, and run nothing.
    """
    if demo and fetched:
        raise UserError("--fetched: the published files are of the real data; leave --demo out")
    tasks = list(dict.fromkeys(name for word in task for name in (TABLES if word == "all" else [word])))
    runs = runs_of(select(tasks, rows, bits), ablation, not no_crp, fetched)
    passed = passed_on(flags, [run.task for run in runs], TYPED_HERE)
    plan = reproduction(runs, demo=demo, fetched=fetched, budget=budget_of(budget), passed=passed, out=out)
    carry_out(plan, Launch(workers, launcher, slurm or {}, dry_run))


def further() -> dict[str, Flag]:
    return kept_as_typed([one for tasks in programs().values() for one in tasks])


if __name__ == "__main__":
    run_tool(reproduce, further)
