"""The folder of a run: lock, configuration, logs, metrics, checkpoints."""

import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config.options import Options
from common.errors import UserError
from common.flags import BARE
from common.machine import distributed
from common.machine.device import random_state, set_random_state
from common.models.foreign import changed_since
from common.reading import read_rows, reason
from common.runs import checkpoint
from common.runs.folder import PROGRAM, RunFolder
from common.runs.log import DETAIL, RunLog
from common.runs.progress import METRICS, read_metrics, read_progress, write_metrics
from common.writing import write_whole

LOG = "logger.log"
FEATURES_BEFORE = "features_before.npz"


class Job:
    """One run's folder, held by this process alone until ``close``. Of several processes of a run the first one writes.

    The folder becomes the program's own with ``begin``. A run that is refused before that leaves it as it was; what it
    logs until then is on stderr alone.

    Attributes:
        folder: job_dir.
        writers: tensorboardX writers by "train" and "test", made at first use.
        writes: whether this process does; the others log, record and save nothing.
        classes: names of what the network tells apart, for its checkpoints.
        split_seen: why the file that the run started from, or its teacher, may have been trained on its test images,
            or "".
        teacher: the digest of the weights that the run is distilled from, or "".
        file_digest: of the user's file as the network was made from it, or "".

    Raises:
        UserError: another process holds the folder; it holds a run and neither --resume nor --reset was given; it holds
            files that no run made; or it cannot be written.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.task = options, options.task
        assert options.run.job_dir is not None, "name_files has named it"
        self.folder = Path(options.run.job_dir)
        self.checkpoints = self.folder / "checkpoint"
        self.split_seen = self.teacher = self.file_digest = ""
        self.classes: tuple[str, ...] = ()
        self._writers: dict[str, Any] = {}
        self._log: RunLog | None = None
        self._bring: Callable[[], None] = lambda: None  # what a resumed run takes over, once it begins
        self._place: RunFolder | None = None
        self.logger = logging.getLogger("alignq")
        self.writes = distributed.rank() == 0
        if self.writes:
            self._place = RunFolder(self.folder)
            try:
                self._place.prepare(reset=options.run.reset, refuse=self._refusal)
                self._log = RunLog(self.logger, self.folder / LOG)
                for note in options.notes:
                    self.log(note)
            except BaseException:
                self.close()
                raise
        distributed.gather(None)  # the folder is ready for all

    def _refusal(self) -> str:
        """Why the run must not touch what is in the folder, or ""."""
        run = self.options.run
        if run.resume is None and not run.test_only and self.last.exists():
            return f"--job_dir {self.folder} holds a run; add --resume to continue it or --reset to start over"
        if not (run.resume or run.test_only or self.last.exists()) and self._trimmed():
            return (
                f"--job_dir {self.folder} holds a finished run, of which the best weights alone were kept: --test_only "
                "evaluates it, --reset starts over"
            )
        return ""

    def _trimmed(self) -> bool:
        return self.best.exists() and (self.folder / "summary.json").exists()

    def begin(self) -> None:
        """Make the folder the program's own: what can be refused has been; training or evaluation comes next."""
        if self._place is None:
            return
        again = self.options.run.test_only and self._place.is_ours()
        self._place.adopt()
        if not again:
            self._write_config()
        self._bring()
        if self._log is not None:
            self._log.begin()

    def _write_config(self) -> None:
        values = self.options.flat()
        content = {
            "program": PROGRAM,
            "task": self.task.name,
            "crp": self.task.crp,
            "options": values,
            "command": sys.argv,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            **self._teacher(),
        }
        write_whole(self.folder / "config.json", json.dumps(content, indent=1) + "\n")
        lines = [time.strftime("%Y-%m-%d-%H:%M:%S"), "", *(f"{key}: {value}" for key, value in values.items()), "", ""]
        write_whole(self.folder / "config.txt", "\n".join(lines))

    def log(self, message: str) -> None:
        """Write a line to logger.log and stderr."""
        self.logger.info(message)

    def detail(self, message: str) -> None:
        """Write a line to logger.log alone."""
        self.logger.log(DETAIL, message)

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "model_best.pt"

    @property
    def reestimated(self) -> Path:
        return self.checkpoints / "model_reestimated.pt"

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
        with open(self.folder / METRICS, "a") as file:
            file.write(json.dumps({"epoch": epoch, **values}) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a killed run left half-written is dropped."""
        return read_rows(self.folder / METRICS, "the metrics of a run")

    def write_json(self, name: str, content: Any) -> None:
        if not self.writes:
            return
        write_whole(self.folder / name, json.dumps(content, indent=1) + "\n")

    def save(self, state: dict[str, Any], epoch: int, is_best: bool) -> None:
        """Write model_best.pt (if it is), model_N.pt (by --save_every), and last.pt after them: it vouches for both."""
        if not self.writes:
            return
        content = {
            **state,
            "epoch": epoch + 1,
            "config": self._plain_config(),
            "random": random_state(),
            "split_seen": self.split_seen,
        }
        if is_best:
            checkpoint.save(content, self.best)
        every = self.options.run.save_every
        if every and (epoch + 1) % every == 0:
            checkpoint.save(content, self.checkpoints / f"model_{epoch + 1}.pt")
        checkpoint.save(content, self.last)

    def add(self, path: Path, **more: Any) -> None:
        """Put more into a checkpoint of this run."""
        checkpoint.save({**checkpoint.read(path), **more}, path)

    def save_reestimated(self, network: dict[str, Any], epochs: int) -> None:
        """Write the last epoch's network with its statistics estimated anew: weights alone, nothing to resume from."""
        about = {"config": self._plain_config(), "split_seen": self.split_seen}
        checkpoint.save({"state_dict_t": network, "epoch": epochs, **about}, self.reestimated)

    def _plain_config(self) -> dict[str, Any]:
        of_network = {"num_classes": len(self.classes), "classes": self.classes}
        of_network |= {"file_digest": self.file_digest} if self.file_digest else {}
        return json.loads(json.dumps({**self.options.flat(), "task": self.task.name, **of_network, **self._teacher()}))

    def _teacher(self) -> dict[str, str]:
        return {"teacher": self.teacher} if self.teacher else {}

    def restore(self, tested: Collection[str]) -> dict[str, Any] | None:
        """The checkpoint to resume from, or None for a fresh start; the metrics of later epochs are dropped.

        From a checkpoint of another folder, what a result needs is brought along: the best epoch's weights, where they
        lie beside it, the metrics, and the features before training. Where the best weights are not there, "best" in
        the checkpoint is None and the best epoch is chosen anew. Nothing is written before ``begin``.

        Args:
            tested: the names of the run's test sets.
        Raises:
            UserError: --resume names a file that is not there, a run with other settings, or one that has trained more
                epochs than --num_epochs; also as many, where this folder has no metrics of them.
        """
        self._bring = lambda: write_metrics(self.folder, [])
        if self.options.run.resume is None:
            return None
        path = self.last if self.options.run.resume == BARE else Path(self.options.run.resume)
        if self.options.run.resume == BARE and not path.exists():
            self.log(f"--resume: {path} is not there yet; starting from the beginning")
            return None
        content = read_progress(path, self.options, tested, self.teacher)
        own, rows = (read_metrics(folder, tested, content["epoch"]) for folder in (self.folder, path.parent.parent))
        epochs = self.options.training.num_epochs
        if content["epoch"] == epochs and not own:
            raise UserError(
                f"--resume {path}: nothing is left to train, it is at epoch {content['epoch']} of "
                f"{epochs}; --test_only evaluates it, a higher --num_epochs goes on"
            )
        try:
            set_random_state(content["random"])
        except Exception as error:  # of torch's generators, or of what stands in their place
            raise UserError(f"--resume {path}: its random state cannot be read ({reason(error)})") from None
        self.split_seen = str(content.get("split_seen", "")) or self.split_seen
        best = self._best_of(content, path)
        self._bring = lambda: self._bring_along(own or rows, best, path.parent.parent / FEATURES_BEFORE)
        if best is None:
            content["best"] = None
            self.log(f"--resume {path}: its best epoch's weights are not beside it; the best is chosen from here on")
        if changed := changed_since(self.options.quantization.model, str(content["config"].get("file_digest", ""))):
            self.log(f"warning: {changed}")
        self.log(f"resuming from {path} at epoch {content['epoch']}")
        return content

    def _best_of(self, content: dict[str, Any], path: Path) -> dict[str, Any] | None:
        """The weights of the best epoch of a checkpoint to resume from; None: they are nowhere."""
        if not self.writes:
            return content
        for place in (self.best, path.with_name(self.best.name), path):
            if place.is_file() and (found := checkpoint.read(place)).get("epoch") == content["best"]["epoch"] + 1:
                return {} if place == self.best else found
        return None

    def _bring_along(self, rows: list[dict[str, Any]], best: dict[str, Any] | None, features: Path) -> None:
        """Let the folder hold these metrics, these best weights unless they are there, and these features."""
        write_metrics(self.folder, rows)
        if best:
            checkpoint.save(best, self.best)
        if features.is_file() and not (self.folder / FEATURES_BEFORE).exists():
            write_whole(self.folder / FEATURES_BEFORE, features.read_bytes())

    def close(self) -> None:
        """Flush the writers and let go of the folder."""
        for writer in self._writers.values():
            writer.close()
        if self._log is not None:
            self._log.close()
        if self._place is not None:
            self._place.close()
