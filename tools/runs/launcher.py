"""Running commands several at a time, each after the one that it needs, on this machine or through Slurm.

Both ways are `submitit` jobs; a job is submitted when what it needs is done.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
from submitit.core.utils import FailedJobError

from common.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job needs nothing of this repository on its path
YEAR = 365 * 24 * 60  # minutes; submitit stops a local job after a time limit
POLL = 0.1  # seconds between two looks at the running jobs


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its status (negative: by that signal) and the last line it wrote to stderr.

    ``skipped``: it was not run, because what it needs failed.
    """

    status: int
    last_line: str = ""
    seconds: float = 0.0
    skipped: bool = False


@dataclass
class Command:
    """A program to run once. As a job it is called with nothing and returns its Outcome.

    Attributes:
        name: unique among those run together. argv: the program and its arguments.
        log: file to which its stderr is appended. folder: where it runs.
        needs: name of the command that must have succeeded before; None, or one that is not run: nothing.
        environment: variables to set; None: to remove.
    """

    name: str
    argv: Sequence[str]
    log: Path
    folder: Path
    needs: str | None = None
    environment: dict[str, str | None] = field(default_factory=dict)

    def __call__(self) -> Outcome:
        wanted = {**os.environ, **self.environment}
        environment = {key: value for key, value in wanted.items() if value is not None}
        start = time.monotonic()
        with open(self.log, "a+", errors="replace") as log:
            log.seek(0, os.SEEK_END)
            begin = log.tell()
            quiet = subprocess.DEVNULL
            child = subprocess.Popen(self.argv, cwd=self.folder, env=environment, stdin=quiet, stdout=quiet, stderr=log)
            asked = False

            def forward(signum: int, frame: Any) -> None:
                nonlocal asked
                if not asked:  # once: a second signal would interrupt the program's own clean end
                    child.terminate()
                asked = True

            signal.signal(signal.SIGTERM, forward)
            status = child.wait()
            log.seek(begin)
            lines = [line.strip() for line in log if line.strip()]
        return Outcome(status, lines[-1] if lines else "", time.monotonic() - start)


@dataclass
class Launcher:
    """Where jobs run.

    Args:
        cluster: "local" or "slurm".
        folder: where submitit keeps its files; for Slurm on a file system that all nodes see.
        parameters: of submitit's executor, e.g. {"slurm_partition": "gpu", "gpus_per_node": 1}.
    Raises:
        UserError: Slurm is not installed here, or a parameter that submitit does not know.
    """

    cluster: str
    folder: Path
    parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        except RuntimeError as error:
            raise UserError(f"--launcher {self.cluster}: {error}; --launcher local runs the same cells here") from None
        try:
            self._executor.update_parameters(**({"timeout_min": YEAR} if self.cluster == "local" else {}))
            self._executor.update_parameters(**self.parameters)
        except (NameError, AssertionError, TypeError, ValueError) as error:
            raise UserError(f"submitit refuses {self.parameters}: {str(error).splitlines()[0]}") from None

    def submit(self, command: Command) -> submitit.Job:
        try:
            return self._executor.submit(command)
        except FailedJobError as error:  # of sbatch
            raise UserError(f"--launcher {self.cluster}: {' '.join(str(error).split())[:300]}") from None

    def stop(self, jobs: Sequence[submitit.Job]) -> None:
        """Ask the jobs to end, and wait until the local ones have."""
        if self.cluster != "local":
            for job in jobs:
                job.cancel(check=False)
            return
        while waiting := [job for job in jobs if not job.done()]:
            for job in waiting:  # again and again: one that is just starting does not listen yet
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(1)


@contextmanager
def _interrupts_stay_here() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C; this one does, and then tells them to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def device_environment(slot: int, devices: Sequence[str], visible: str | None) -> dict[str, str | None]:
    """CUDA_VISIBLE_DEVICES of a worker: its own of several devices, otherwise what it was."""
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)] if len(devices) > 1 else visible}


def run_all(
    commands: Sequence[Command],
    launcher: Launcher,
    workers: int,
    environment: Callable[[int], dict[str, str | None]] = lambda slot: {},
    report: Callable[[Command, Outcome | None], None] = lambda command, outcome: None,
) -> dict[str, Outcome]:
    """Run every command whose need is met, at most ``workers`` at a time; a failure stops only what needs it.

    Args:
        environment: further variables of the command in a slot, 0 <= slot < workers.
        report: called with (command, None) when one starts and with its outcome when it ends.
    Returns:
        The outcomes by name; of a command that was not run because of a failure, status 1 and a line that says so.
    Raises:
        KeyboardInterrupt: after every running command was asked to end.
    """
    waiting = list(commands)
    outcomes: dict[str, Outcome] = {}
    running: dict[int, tuple[Command, submitit.Job]] = {}

    def conclude(command: Command, outcome: Outcome) -> None:
        outcomes[command.name] = outcome
        report(command, outcome)

    try:
        while waiting or running:
            unfinished = {c.name for c in waiting} | {c.name for c, _ in running.values()}
            for command in [c for c in waiting if c.needs not in unfinished]:
                if command.needs in outcomes and outcomes[command.needs].status:
                    waiting.remove(command)
                    conclude(command, Outcome(1, f"not run, because {command.needs} failed", skipped=True))
                elif len(running) < workers:
                    waiting.remove(command)
                    slot = min(set(range(workers)) - set(running))
                    command.environment = {**command.environment, **environment(slot)}
                    report(command, None)
                    with _interrupts_stay_here():
                        running[slot] = command, launcher.submit(command)
            for slot, (command, job) in list(running.items()):
                if job.done():
                    del running[slot]
                    conclude(command, _outcome(job))
            time.sleep(POLL if running else 0)
    except BaseException:
        launcher.stop([job for _, job in running.values()])
        raise
    return outcomes


def _outcome(job: submitit.Job) -> Outcome:
    """What a finished job returned; one that was killed returned nothing."""
    error = job.exception()
    if error is None:
        return job.result()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return Outcome(1, f"job {job.job_id}: {lines[-1] if lines else 'ended without a result'}")
