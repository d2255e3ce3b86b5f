"""The runner of a plan: it holds the folders of results, launches, reports, trims, collects the results, and ends."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from common.config.options import parse
from common.errors import UserError
from common.flags import shown
from common.runs.cli import INTERRUPTED
from tools.runs import disk
from tools.runs.launcher import Command, Launcher, Outcome, device_environment, run_all
from tools.runs.plan import BEST, Launch, Plan, Planned
from tools.runs.programs import main_of
from tools.runs.results_folder import hold


def carry_out(plan: Plan, how: Launch) -> None:
    """Run what is left of a plan, write what was found and say what failed; the process then ends with status 1.

    Raises:
        UserError: main.py would refuse a flag, the disk is too full, or a folder of results is not to be had.
    """
    left = [run for run in plan.runs if run.arguments]
    options = {run: parse(run.task, run.arguments) for run in left}
    workers = how.workers or (1 if how.launcher == "local" else max(1, len(left)))
    kept, most = disk.needed(options, workers) if plan.trims else (0, 0)
    about = [disk.statement(plan.out, kept, most, len(left))] if plan.trims else []
    if how.dry_run:
        commands = [as_typed(run) for run in left] or [f"# every {plan.each} is finished"]
        print("\n".join([*(f"# {line}" for line in about), *commands]))
        return
    if plan.trims:
        disk.check_free(plan.out, most)
        print("\n".join(about), file=sys.stderr)
    launcher = Launcher(how.launcher, plan.out.resolve() / "submitit" / str(os.getpid()), how.slurm)
    with ExitStack() as held:
        for folder, settings in plan.settings.items():
            held.enter_context(hold(folder, settings))
        if plan.trims:
            for run in plan.runs:
                if run not in options:  # a call that was interrupted may have left its files
                    disk.trim(run.job / BEST)
        outcomes = train(left, launcher, workers, plan)
        for folder in plan.settings:
            try:
                text = plan.collect(folder)
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f"{folder}: results.jsonl or a run's summary.json is damaged ({shown(error)})"
                ) from None
            if text is not None:
                print(f"\n{text}")
    end(outcomes, [run.folder / "logs" for run in left if outcomes[_title(run, plan)].status])


def as_typed(run: Planned) -> str:
    """The command of a run as it is typed in the current folder."""
    here, program = Path.cwd(), main_of(run.task)
    shortest = program.relative_to(here) if program.is_relative_to(here) else program
    return shlex.join(["python", str(shortest), *run.arguments])


def _title(run: Planned, plan: Plan) -> str:
    return str(run.job.relative_to(plan.out))


def train(runs: Sequence[Planned], launcher: Launcher, workers: int, plan: Plan) -> dict[str, Outcome]:
    """Run them and say what starts and ends. Ctrl-C ends them, and the process, with how to continue."""
    by_title = {_title(run, plan): run for run in runs}
    commands = [
        Command(
            name=title,
            argv=[sys.executable, str(main_of(run.task)), *run.arguments],
            log=run.folder.resolve() / "logs" / f"{run.name}.log",
            folder=Path.cwd(),
            needs=str((run.folder / run.source).relative_to(plan.out)) if run.source else None,
        )
        for title, run in by_title.items()
    ]
    ended = 0

    def report(command: Command, outcome: Outcome | None) -> None:
        nonlocal ended
        ended += outcome is not None
        if outcome is None:
            text = "started"
        else:
            text = f"failed: {outcome.last_line}" if outcome.status else f"done in {outcome.seconds / 60:.1f} min"
        print(f"[{ended}/{len(commands)}] {command.name}: {text}", file=sys.stderr, flush=True)
        if plan.trims and outcome is not None and not outcome.status:
            disk.trim(by_title[command.name].job / BEST)

    try:
        return run_all(commands, launcher, workers, _environments(launcher, workers), report)
    except KeyboardInterrupt:
        line = "interrupted; the same command continues: finished runs are kept, interrupted ones resume"
        print(f"{sys.argv[0]}: {line}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _environments(launcher: Launcher, workers: int) -> Callable[[int], dict[str, str | None]]:
    """The variables of a worker on this machine: its device, and its share of the processors."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = torch.cuda.device_count()
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(devices)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // workers))

    def of_slot(slot: int) -> dict[str, str | None]:
        if launcher.cluster != "local":
            return {}
        return {**device_environment(slot, names[:devices], visible), "OMP_NUM_THREADS": threads}

    return of_slot


def end(outcomes: dict[str, Outcome], logs: Sequence[Path]) -> None:
    """Say what failed, and where its logs are; the process then ends with status 1."""
    failed = [name for name, outcome in outcomes.items() if outcome.status and not outcome.skipped]
    if not failed:
        return
    lines = [f"failed: {name}: {outcomes[name].last_line}" for name in failed]
    skipped = sum(outcome.skipped for outcome in outcomes.values())
    rest = f", {skipped} that start from them were not run" if skipped else ""
    lines.append(f"{len(failed)} of {len(outcomes)} runs failed{rest}; the same command tries again")
    lines.append(f"their logs are in {', '.join(dict.fromkeys(map(str, logs)))}")
    print("\n".join(lines), file=sys.stderr)
    sys.exit(1)
