"""The folder of a run: lock, configuration, logs, metrics, checkpoints."""

import argparse
import fcntl
import json
import logging
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.config.options import BARE, recorded
from common.config.tasks import Task
from common.errors import UserError
from common.machine import distributed
from common.machine.device import random_state, set_random_state
from common.runs import checkpoint
from common.writing import write_whole

PROGRAM = "alignq"  # in config.json: says that the folder is ours
SAME_RUN = ("model", "method", "bitW", "abitW", "demo", "seed", "train_batch_size", "src_data", "tgt_data")


class _BarAwareHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Job:
    """One run's folder, held by this process alone until ``close``. Of several processes of a run the first one writes.

    Attributes:
        folder: job_dir. log: writes a line to logger.log and stderr.
        writers: tensorboardX writers by "train" and "test", made at first use.
        writes: whether this process does; the others log, record and save nothing.

    Raises:
        UserError: another process holds the folder; it holds a run and neither --resume nor --reset was given; or
            --reset meets a folder that this program did not make.
    """

    def __init__(self, options: argparse.Namespace, task: Task) -> None:
        self.options, self.task = options, task
        self.folder = Path(options.job_dir)
        self.checkpoints = self.folder / "checkpoint"
        self._writers: dict[str, Any] = {}
        self._lock: Any = None
        self.logger = logging.getLogger("gal")
        self.writes = distributed.rank() == 0
        if self.writes:
            self._open()
        distributed.gather(None)  # the folder is ready for all

    def _open(self) -> None:
        options = self.options
        ours = self._config().get("program") == PROGRAM
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--job_dir {self.folder}: a file; expected a folder")
        if options.reset and self.folder.exists() and any(self.folder.iterdir()) and not ours:
            raise UserError(
                f"--reset: {self.folder} was not made by this program; remove it yourself or choose another"
            )
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = self._hold()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _config(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / "config.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _hold(self) -> Any:
        lock = open(self.folder / ".lock", "w")  # noqa: SIM115 -- held as long as the job
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(
                f"--job_dir {self.folder}: another run is writing there; wait for it or choose another"
            ) from None
        return lock

    def _prepare(self) -> None:
        options = self.options
        if options.reset:
            for entry in self.folder.iterdir():
                if entry.name != ".lock":
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            self.checkpoints.mkdir()
        for leftover in self.folder.rglob(".*.tmp"):  # of a killed run
            leftover.unlink()
        if options.resume is None and not options.test_only and self.last.exists():
            raise UserError(
                f"--job_dir {self.folder} holds a run; add --resume to continue it or --reset to start over"
            )
        if not (options.resume or options.test_only or self.last.exists()) and self._trimmed():
            raise UserError(
                f"--job_dir {self.folder} holds a finished run, of which the best weights alone were kept: --test_only "
                "evaluates it, --reset starts over"
            )
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        layout = logging.Formatter("%(asctime)s | %(message)s", "%m/%d %I:%M:%S %p")
        self._handlers = [logging.FileHandler(self.folder / "logger.log"), _BarAwareHandler()]
        for handler in self._handlers:
            handler.setFormatter(layout)
            self.logger.addHandler(handler)
        if not (options.test_only and self._config()):
            self._write_config()
        for note in options.notes:
            self.log(note)

    def _trimmed(self) -> bool:
        return self.best.exists() and (self.folder / "summary.json").exists()

    def _write_config(self) -> None:
        values = recorded(self.options, self.task)
        content = {
            "program": PROGRAM,
            "task": self.task.name,
            "crp": self.task.crp,
            "options": values,
            "command": sys.argv,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }
        write_whole(self.folder / "config.json", json.dumps(content, indent=1) + "\n")
        lines = [time.strftime("%Y-%m-%d-%H:%M:%S"), "", *(f"{key}: {value}" for key, value in values.items()), "", ""]
        (self.folder / "config.txt").write_text("\n".join(lines))

    def log(self, message: str) -> None:
        self.logger.info(message)

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "model_best.pt"

    def writer(self, split: str) -> Any:
        """The tensorboardX writer of run/train or run/test."""
        if split not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[split] = SummaryWriter(str(self.folder / "run" / split))
        return self._writers[split]

    def scalars(self, split: str, values: dict[str, float], step: int) -> None:
        for tag, value in values.items() if self.writes else ():
            self.writer(split).add_scalar(tag, value, step)

    def record(self, epoch: int, values: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.writes:
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a killed run left half-written is dropped."""
        rows = []
        path = self.folder / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows

    def write_json(self, name: str, content: Any) -> None:
        if not self.writes:
            return
        write_whole(self.folder / name, json.dumps(content, indent=1) + "\n")

    def save(self, state: dict[str, Any], epoch: int, is_best: bool) -> None:
        """Write model_best.pt (if it is), model_N.pt (by --save_every), and last.pt after them: it vouches for both."""
        if not self.writes:
            return
        content = {**state, "epoch": epoch + 1, "config": self._plain_config(), "random": random_state()}
        if is_best:
            checkpoint.save(content, self.best)
        every = self.options.save_every
        if every and (epoch + 1) % every == 0:
            checkpoint.save(content, self.checkpoints / f"model_{epoch + 1}.pt")
        checkpoint.save(content, self.last)

    def _plain_config(self) -> dict[str, Any]:
        config = {**recorded(self.options, self.task), "model": self.options.model, "task": self.task.name}
        return json.loads(json.dumps(config))

    def restore(self) -> dict[str, Any] | None:
        """The checkpoint to resume from, or None for a fresh start; the metrics of later epochs are dropped.

        Raises:
            UserError: --resume names a file that is not there, or a run with other settings.
        """
        if self.options.resume is None:
            self._keep([])
            return None
        path = self.last if self.options.resume == BARE else Path(self.options.resume)
        if self.options.resume == BARE and not path.exists():
            self.log(f"--resume: {path} is not there yet; starting from the beginning")
            self._keep([])
            return None
        content = checkpoint.read(path)
        config = content.get("config")
        if not isinstance(config, dict) or "optimizer_t" not in content:
            raise UserError(f"--resume {path}: not a checkpoint of this program; --source_file starts from its weights")
        now = self._plain_config()
        for key in SAME_RUN:
            if key in now and config.get(key) != now[key]:
                raise UserError(f"--resume {path}: it was made with --{key} {config.get(key)}, not {now[key]}")
        set_random_state(content["random"])
        rows = [row for row in self.history() if row["epoch"] < content["epoch"]]
        if content["epoch"] >= self.options.num_epochs and not rows:
            raise UserError(
                f"--resume {path}: nothing is left to train, it is at epoch {content['epoch']} of "
                f"{self.options.num_epochs}; --test_only evaluates it, a higher --num_epochs goes on"
            )
        self._keep(rows)
        self.log(f"resuming from {path} at epoch {content['epoch']}")
        return content

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        """Let metrics.jsonl hold these lines alone; none: no file."""
        path = self.folder / "metrics.jsonl"
        if not self.writes:
            return
        if not rows:
            path.unlink(missing_ok=True)
            return
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))

    def close(self) -> None:
        """Flush the writers and let go of the folder."""
        for writer in self._writers.values():
            writer.close()
        for handler in getattr(self, "_handlers", []):
            self.logger.removeHandler(handler)
            handler.close()
        if self._lock is not None:
            self._lock.close()
