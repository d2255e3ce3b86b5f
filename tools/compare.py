"""All methods at several bit-widths under identical conditions: trained, tabled, drawn.

    python tools/compare.py --task resnet20 --methods all --bits 8,4,3,2 --seeds 3 --demo

Every cell (a method, a bit-width, a seed) is a run of the task's own main.py. A finished one is not run again, and an
interrupted one resumes: the same command continues a comparison.
"""

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config.tasks import Task
from common.errors import UserError
from common.flags import Flag, number, seed_number, shown
from common.quantizers import METHODS
from common.runs.annotations import Count, NewFolder, one_of
from common.runs.tool import run_tool
from tools.runs.budget import Budget
from tools.runs.comparison import VARIANTS, comparison
from tools.runs.main_flags import kept_as_typed, passed_on
from tools.runs.plan import Launch, Slurm, Workers
from tools.runs.programs import programs
from tools.runs.runner import carry_out

TYPED_HERE = {  # flags of main.py that this program gives every run itself
    *("method", "bitW", "abitW", "seed", "job_dir", "source_dir", "source_file", "pretrained", "config"),
    *("resume", "reset", "test_only"),
}
MOST_SEEDS = 1000
Width = Annotated[int, number(int, 1, 31, "widths")]


def seed_list(text: str) -> tuple[int, ...]:
    """How many, such as 3, or with commas the seeds themselves, such as 0,1,2 or 7, for a single one."""
    words = text.strip("[]() ").split(",")
    try:
        if len(words) == 1:
            return tuple(range(number(int, 1, MOST_SEEDS)(words[0])))
        return tuple(dict.fromkeys(seed_number(word.strip()) for word in (words if words[-1].strip() else words[:-1])))
    except ArgumentTypeError:
        raise ArgumentTypeError(
            f"expected how many, such as 3, or the seeds themselves, such as 0,1,2, not {shown(text)}"
        ) from None


def compare(
    *,
    task: str = "resnet20",
    methods: tuple[Annotated[str, one_of("all", *METHODS, *VARIANTS)], ...] = ("all",),
    bits: tuple[Width, ...] = (8, 4, 3, 2),
    seeds: Annotated[tuple[int, ...], seed_list] = (0, 1, 2),
    demo: bool = False,
    against: Annotated[str, one_of("float", *METHODS, *VARIANTS)] | None = None,
    epochs_per_bit: Count | None = None,
    schedule: Literal["steps", "cosine"] = "steps",
    distill: bool = False,
    chain: bool = False,
    shift: bool = False,
    workers: Workers | None = None,
    launcher: Literal["local", "slurm"] = "local",
    slurm: Slurm | None = None,
    out: NewFolder | None = None,
    dry_run: bool = False,
    **flags: str,
) -> None:
    """Train the float network once per seed, then every method at every bit-width from it; write a table and a picture.

    Any other flag of the task's main.py (--num_epochs, --lr, --data_dir ...) is passed to every run.

    Args:
        task: a folder of single_domain: resnet20, resnet56, densenet40.
        methods: names with commas between; all: every registered method; ours-ste: ours with --grad_approx ste.
        bits: bit-widths of weights and activations; where a method does not define one, the table has a dash.
        seeds: how many: 3 is 0, 1 and 2. With commas, the seeds themselves.
        demo: train on the demo data.
        against: also table every method's paired differences from this one, or from float, with standard errors.
        epochs_per_bit: epochs of every quantized network (default: the recipe's); milestones keep their place.
        schedule: of the learning rate of quantized networks: the recipe's milestones, or a cosine to 0.
        distill: let the float network of its seed teach every quantized one (--distill_weight, --distill_temperature).
        chain: start from the next wider width of the README's table (32, 8, 4, 3, 2) and not from float; widths on the
            way are trained even where they were not asked for.
        shift: also evaluate the best epoch's networks on corrupted test images.
        workers: runs at a time (default: 1; all with Slurm); of several CUDA devices each worker gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        out: folder of the results (default: results/compare/TASK, with _demo behind it for demo data).
        dry_run: print the commands that are left to run, and run nothing.
    """
    described = task_of(task)
    plan = comparison(
        described,
        list(dict.fromkeys(name for word in methods for name in (METHODS if word == "all" else [word]))),
        list(dict.fromkeys(bits)),
        seeds,
        chain=chain,
        shift=shift,
        demo=demo,
        passed=passed_on(flags, [described], TYPED_HERE),
        budget=Budget(epochs_per_bit, schedule, distill),
        against=against,
        folder=out or Path("results", "compare", f"{task}_demo" if demo else task),
    )
    carry_out(plan, Launch(workers, launcher, slurm or {}, dry_run))


def single_domain_tasks() -> dict[str, Task]:
    return {name: tasks[0] for name, tasks in programs().items() if not tasks[0].cross}


def task_of(name: str) -> Task:
    known = single_domain_tasks()
    if name not in known:
        raise UserError(f"--task: expected one of {', '.join(known)}, not {shown(name)}")
    return known[name]


def further() -> dict[str, Flag]:
    return kept_as_typed(list(single_domain_tasks().values()))


if __name__ == "__main__":
    run_tool(compare, further)
