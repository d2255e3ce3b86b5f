"""Entries of the tables and pictures: runs that differ in nothing but the seed, and what is said of them together."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.quantizers import METHODS
from tools.page.jobs import JobRecord
from tools.runs import recorded, result_tables

WITHOUT_EFFECT = {  # flags that do not make a result another one
    *("seed", "job_dir", "source_dir", "data_dir", "tgt_data_dir", "download", "device", "gpus", "num_workers"),
    *("print_freq", "save_every", "config", "resume", "reset", "test_only", "shift", "shift_images", "eval_batch_size"),
    *("adapt", "adapt_images", "adapt_prior"),
}


@dataclass(frozen=True)
class Entry:
    """Finished runs of one method and bit-width; ``label`` also says in what else they differ from another's."""

    label: str
    runs: list[JobRecord]

    @property
    def bits(self) -> str:
        return self.runs[0].bits

    @property
    def title(self) -> str:
        return self.label if self.runs[0].widths == (32, 32) else f"{self.label}, {self.bits} bits"

    def accuracy(self, when: str) -> tuple[float, float]:
        """Mean and standard deviation (n - 1; nan for one run) over the runs, in per cent."""
        return result_tables.mean_and_spread([run.accuracy(when) for run in self.runs])

    @property
    def shifted(self) -> tuple[float, float] | None:
        """The same on corrupted images; None: not every run was evaluated on them."""
        found = [run.summary.get("shift") for run in self.runs]
        return result_tables.mean_and_spread([float(entry["mean"]) for entry in found if entry]) if all(found) else None

    @property
    def adapted(self) -> tuple[float, float] | None:
        """The same of the re-aligned networks."""
        return self._of_all(lambda summary: summary["shift"]["adapted"]["mean"])

    @property
    def adapted_clean(self) -> tuple[float, float] | None:
        """Accuracy on the test set, or the target's, of the re-aligned networks."""
        name = "target" if self.runs[0].pair else "test"
        return self._of_all(lambda summary: summary["adapted"][name]["prec1"])

    def _of_all(self, value: Callable[[dict[str, Any]], float]) -> tuple[float, float] | None:
        try:
            return result_tables.mean_and_spread([float(value(run.summary)) for run in self.runs])
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def effective(self) -> dict[str, Any]:
        """`recorded.effective` of the first run."""
        run = self.runs[0]
        method = METHODS.get(str(run.facts["method"]))
        reported = method.reported_weight_bits if method else None
        return recorded.effective(run.summary["layers"], run.widths != (32, 32), reported)

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Rows as in metrics.jsonl, top-1 averaged over the runs that have the epoch."""
        split = self.runs[0].split
        epochs = sorted({row["epoch"] for run in self.runs for row in run.history})
        rows = []
        for epoch in epochs:
            there = [row for run in self.runs for row in run.history if row["epoch"] == epoch]
            mean = {part: {"prec1": float(np.mean([row[part]["prec1"] for row in there]))} for part in (split, "train")}
            rows.append({"epoch": epoch, **mean})
        return rows

    @property
    def per_class(self) -> dict[str, float]:
        """Accuracy of each class at the best epoch, mean over the runs; empty: not recorded by all of them."""
        found = [run.summary.get("per_class", {}).get("best", {}) for run in self.runs]
        if not all(found) or any(entry.keys() != found[0].keys() for entry in found):
            return {}
        return {name: float(np.mean([entry[name] for entry in found])) for name in found[0]}

    def relations(self, key: str) -> list[tuple[str, float]]:
        """(layer, mean |D|) on test images, mean over the runs; ``key`` is "aligned" or "quantized"."""
        found = [run.summary.get("relation_error") or {} for run in self.runs]
        if not all(found):
            return []
        layers = zip(*(entry["layers"] for entry in found), strict=True)
        return [(same[0]["layer"], float(np.mean([entry[key] for entry in same]))) for same in layers]


def entries_of(runs: Sequence[JobRecord]) -> list[Entry]:
    """The entries of one group of runs, float first, then the widest bits; methods in the order of the registry."""
    together: dict[tuple[str, str], list[JobRecord]] = {}
    for run in runs:
        together.setdefault((run.method, run.bits), []).append(run)
    entries = [entry for (method, _), same in together.items() for entry in _split(method, same)]
    names = ["float", *METHODS]

    def place(entry: Entry) -> tuple[Any, ...]:
        word = re.split(r"[ ,]", entry.label)[0]
        weights, activations = entry.runs[0].widths
        return -weights, -activations, names.index(word) if word in names else len(names), entry.label

    return sorted(entries, key=place)


def _split(method: str, runs: Sequence[JobRecord]) -> list[Entry]:
    """One entry, or several with the flags that tell them apart in their labels."""
    settings = [_settings(run) for run in runs]
    keys = sorted({key for flags in settings for key in flags})
    telling = [key for key in keys if len({str(flags.get(key)) for flags in settings}) > 1]
    entries: dict[str, list[JobRecord]] = {}
    for run, flags in zip(runs, settings, strict=True):
        extra = ", ".join(f"{key} {flags.get(key)}" for key in telling)
        entries.setdefault(f"{method} ({extra})" if extra else method, []).append(run)
    return [Entry(label, same) for label, same in entries.items()]


def _settings(run: JobRecord) -> dict[str, Any]:
    flags = {k: v for k, v in run.config.get("options", {}).items() if k not in WITHOUT_EFFECT}
    for name in ("source_file", "distill"):
        flags[name] = re.sub(r"seed\d+", "seed", str(flags.get(name)))
    return flags


def distinct(items: Sequence[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """The items in lists of equal ``key``, in order of appearance."""
    lists: dict[Any, list[Any]] = {}
    for item in items:
        lists.setdefault(key(item), []).append(item)
    return list(lists.values())
