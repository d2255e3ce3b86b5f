"""Which job folders a report is about, and what each of them holds: read without trusting any of it."""

import glob
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, one_line
from common.reading import parse_json, read_rows, read_text
from tools.runs import recorded

MARKS = ("config.json", "summary.json", "metrics.jsonl")  # a folder with one of them is a job's
UNREADABLE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, UserError),
    zipfile.BadZipFile,
)


@dataclass
class JobRecord:
    """A job folder. ``problem`` says why it has no result ("" where it has one); its curves may be there all the same.

    Accuracies are of the test set, or of the target's in a cross-domain run, in per cent.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """The flags of the run, with what its summary says of the same names."""
        return {**self.config.get("options", {}), **self.summary}

    @property
    def task(self) -> str:
        return str(self.summary.get("task") or self.config["task"])

    @property
    def demo(self) -> bool:
        return bool(self.facts["demo"])

    @property
    def data(self) -> str:
        """The word before every accuracy: "demo " or nothing."""
        return "demo " if self.demo else ""

    @property
    def pair(self) -> str:
        options = self.config.get("options", {})
        pair = self.summary.get("pair") or ([options["src_data"], options["tgt_data"]] if "src_data" in options else [])
        return " → ".join(map(str, pair))

    @property
    def split(self) -> str:
        """What metrics.jsonl calls the images that the accuracy is of."""
        return "target" if self.pair else "test"

    @property
    def protocol(self) -> str:
        """Which images train and test, and what chose the best epoch."""
        rule = self.summary.get("selected_by") or self.facts["select"]
        chosen = "being the last" if rule == "last" else f"{rule} accuracy"
        return (
            f"{self.summary.get('protocol', 'training and test split of the data set')}; best epoch chosen by {chosen}"
        )

    @property
    def widths(self) -> tuple[int, int]:
        return int(self.facts["bitW"]), int(self.facts["abitW"])

    @property
    def bits(self) -> str:
        weights, activations = self.widths
        return str(weights) if weights == activations else f"{weights}/{activations}"

    @property
    def method(self) -> str:
        """As the tables call it: the method, and what was changed or added."""
        facts = self.facts
        name = "float" if self.widths == (32, 32) else str(facts["method"])
        if name == "ours" and facts.get("grad_approx") == "ste":
            name += " (ste)"
        if facts.get("crp") and facts.get("crp_weight", 1):
            name += " + CRP"
        return name + (", source only" if facts.get("source_only") or facts.get("src_only_flag") else "")

    @property
    def group(self) -> tuple[str, str, bool, str]:
        """Runs whose accuracies may stand in one table: task, pair, demo, protocol."""
        return self.task, self.pair, self.demo, self.protocol

    def accuracy(self, when: str) -> float:
        """Top-1 in per cent of the "best" or the "last" epoch."""
        entry = self.summary[when]
        return float(entry["target"]["prec1"] if self.pair else entry["test_prec1"])

    @cached_property
    def confusion(self) -> dict[str, np.ndarray]:
        """(C, C) counts of the best and the last epoch; empty: the run did not record them."""
        classes = len(self.summary.get("classes", ()))
        return {
            when: np.array(m, float).reshape(classes, classes) for when, m in self.summary.get("confusion", {}).items()
        }

    def check(self) -> None:
        """Touch all that the tables show; raises one of UNREADABLE where something is missing or is not a number."""
        _ = self.group, self.bits, self.method, self.summary["seed"], self.confusion
        for when in ("best", "last"):
            if not np.isfinite(self.accuracy(when)) or int(self.summary[when]["epoch"]) < 0:
                raise ValueError(f"{when} accuracy {self.accuracy(when)}")
        for layer in self.summary["layers"]:
            _ = layer["layer"], layer["weight_levels"], layer["input_levels"]
        for row in self.history:
            _ = float(row[self.split]["prec1"]), float(row["train"]["prec1"]), int(row["epoch"])


def find(patterns: Sequence[str]) -> list[Path]:
    """The job folders that the patterns name, each once; a folder without a job of its own gives those below it.

    Raises:
        UserError: a pattern matches nothing, or nothing that it matches has a job in it.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
        if not matches:
            raise UserError(f"{pattern}: there is no such folder; expected job folders, or a folder that holds some")
        jobs = [job for match in matches if match.is_dir() for job in _jobs_in(match)]
        if not jobs:
            raise UserError(f"{pattern}: no job in it; expected folders with a config.json, as --job_dir names them")
        found |= dict.fromkeys(job.resolve() for job in jobs)
    return list(found)


def _jobs_in(folder: Path) -> list[Path]:
    if any((folder / mark).is_file() for mark in MARKS):
        return [folder]
    return sorted({path.parent for mark in MARKS for path in folder.rglob(mark)})


def read_all(folders: Sequence[Path]) -> list[JobRecord]:
    """The runs, named by what of their paths differs."""
    common = Path(*_shared([folder.parts for folder in folders])) if len(folders) > 1 else folders[0].parent
    return [read(folder, str(folder.relative_to(common))) for folder in folders]


def _shared(paths: Sequence[tuple[str, ...]]) -> list[str]:
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def read(folder: Path, name: str) -> JobRecord:
    """One job. What cannot be read becomes its ``problem``, never an exception."""
    run = JobRecord(folder, name)
    try:
        run.config = _printable(_json(folder / "config.json"))
        run.history = _printable(read_rows(folder / "metrics.jsonl", "the metrics of a run"))
        if not (folder / "summary.json").exists():
            epochs = run.config["options"]["num_epochs"]
            run.problem = f"unfinished: {len(run.history)} of {epochs} epochs; --resume continues it"
            return run
        run.summary = _json(folder / "summary.json")
        run.summary = recorded.read_summary(folder) or run.summary  # with what a later --test_only found
        run.summary = _printable(run.summary)
        run.check()
    except UNREADABLE as error:
        run.problem = f"broken: {reason(error)}"
    return run


def reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"an entry {error} is missing"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _printable(content: Any) -> Any:
    """The same with every text in it as it can be shown (``one_line``)."""
    if isinstance(content, dict):
        return {one_line(name): _printable(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_printable(value) for value in content]
    return one_line(content) if isinstance(content, str) else content


def _json(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise UserError(f"{path.name} is not there")
    try:
        return parse_json(read_text(path, "a file of a run"))
    except ValueError:
        raise UserError(f"{path.name} is not a complete JSON file") from None
