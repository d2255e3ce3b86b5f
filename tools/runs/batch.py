"""A batch of runs in one folder of results: held by one process, reported by line, continued by the same command."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.runs.cli import INTERRUPTED
from runs.launcher import Command, Launcher, Outcome, device_environment, run_all


def train(
    commands: Sequence[Command],
    launcher: Launcher,
    workers: int,
    finished: Callable[[Command], None] = lambda command: None,
) -> dict[str, Outcome]:
    """Run the commands and say what starts and ends. Ctrl-C ends them, and the process, with how to continue.

    Args:
        finished: called with each command that succeeded.
    """
    ended = 0

    def report(command: Command, outcome: Outcome | None) -> None:
        nonlocal ended
        ended += outcome is not None
        if outcome is None:
            text = "started"
        else:
            text = f"failed: {outcome.last_line}" if outcome.status else f"done in {outcome.seconds / 60:.1f} min"
        print(f"[{ended}/{len(commands)}] {command.name}: {text}", file=sys.stderr, flush=True)
        if outcome is not None and not outcome.status:
            finished(command)

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    devices = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // workers))

    def environment(slot: int) -> dict[str, str | None]:
        return {**device_environment(slot, devices[:count], visible), "OMP_NUM_THREADS": threads}

    try:
        if launcher.cluster == "local":
            return run_all(commands, launcher, workers, environment, report)
        return run_all(commands, launcher, workers, report=report)
    except KeyboardInterrupt:
        line = "interrupted; the same command continues: finished runs are kept, interrupted ones resume"
        print(f"{sys.argv[0]}: {line}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def end(outcomes: dict[str, Outcome], logs: Path) -> None:
    """Say what failed, and where its logs are; the process then ends with status 1."""
    failed = [name for name, outcome in outcomes.items() if outcome.status and not outcome.skipped]
    if not failed:
        return
    lines = [f"failed: {name}: {outcomes[name].last_line}" for name in failed]
    skipped = sum(outcome.skipped for outcome in outcomes.values())
    rest = f", {skipped} that start from them were not run" if skipped else ""
    lines.append(f"{len(failed)} of {len(outcomes)} runs failed{rest}; the same command tries again")
    lines.append(f"their logs are in {logs}")
    print("\n".join(lines), file=sys.stderr)
    sys.exit(1)


@contextmanager
def hold(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold a folder of results for this process.

    Raises:
        UserError: another process is running there, or its runs were made with other settings and do not compare.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another such program is running there; wait, or choose another --out") from None
        path = folder / "settings.json"
        earlier = json.loads(path.read_text()) if path.exists() else settings
        if earlier != settings:
            text = " and ".join(" ".join(f"{k} {v}" for k, v in s.items()) for s in (earlier, settings))
            raise UserError(f"{folder} holds runs with other settings ({text}); choose another --out")
        path.write_text(json.dumps(settings, indent=1) + "\n")
        yield
