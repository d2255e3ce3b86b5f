"""A study of docs/studies as one command: its runs in the right order, and their results as lines of JSON.

    python tools/study.py docs/studies/digits.json --data_dir data

Every run is one of a task's own main.py. A finished one is not run again, and an interrupted one resumes: the same
command continues a study. `python tools/results.py` puts the results into the documents.
"""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.flags import Flag
from common.runs.annotations import NewFile, NewFolder
from common.runs.tool import run_tool
from tools.runs.main_flags import kept_as_typed, passed_on
from tools.runs.plan import Launch, Slurm, Workers
from tools.runs.programs import programs
from tools.runs.runner import carry_out
from tools.runs.study import plan_of, read

TYPED_HERE = {  # what the study says of every run itself
    *("method", "bitW", "abitW", "seed", "job_dir", "source_dir", "source_file", "pretrained", "config"),
    *("resume", "reset", "test_only"),
}


def study(
    file: Path,
    *,
    out: NewFolder | None = None,
    results: NewFile | None = None,
    workers: Workers | None = None,
    launcher: Literal["local", "slurm"] = "local",
    slurm: Slurm | None = None,
    dry_run: bool = False,
    **flags: str,
) -> None:
    """Train what is left of a study and write a line for every finished run.

    Any other flag of main.py (--data_dir, --num_epochs ...) is passed to every run that has it.

    Args:
        file: the study: title, data, budget, seeds, flags of all runs, "pairs" of source and target domain if there are
            several, and the runs, each with a name, flags and, under "from", the run that it starts from.
        out: folder of the runs (default: results/NAME).
        results: file of the lines (default: results/NAME.jsonl beside the folder of the study).
        workers: runs at a time (default: 1; all with Slurm); of several CUDA devices each gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        dry_run: print the commands that are left to run, in order, and run nothing.
    """
    described = read(file)
    tasks = list({run.program: run.task for run in described.runs}.values())
    plan = plan_of(
        described,
        passed_on(flags, tasks, TYPED_HERE),
        out or Path("results", described.name),
        results or file.resolve().parents[1] / "results" / f"{described.name}.jsonl",
    )
    carry_out(plan, Launch(workers, launcher, slurm or {}, dry_run))


def further() -> dict[str, Flag]:
    return kept_as_typed([one for tasks in programs().values() for one in tasks])


if __name__ == "__main__":
    run_tool(study, further)
