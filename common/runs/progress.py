"""What a checkpoint and its metrics say of the run that is to go on: checked before anything of it is used."""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.adaptation import OBJECTIVES
from common.config.options import Options, all_flags
from common.errors import UserError
from common.flags import shown
from common.reading import is_whole, read_rows
from common.runs import checkpoint
from common.writing import write_whole

SAID = ("model", "method", "bitW", "abitW")  # by every configuration that a run of this program recorded
SAME_RUN = (  # what a resumed run must have been made with
    *("model", "method", "bitW", "abitW", "quant_linear", "demo", "dataset", "img_size", "seed", "train_batch_size"),
    *("select", "val_fraction", "split_seed", "train_split", "src_data", "tgt_data", "src_split", "tgt_split"),
    *("adaptation", "distill_weight", "distill_temperature"),
)
NEEDED = ("config", "state_dict_t", "optimizer_t", "scheduler_t", "random", "epoch", "best", "peaks", "pretrained")
METRICS = "metrics.jsonl"


def read_progress(path: Path, options: Options, tested: Collection[str], teacher: str = "") -> dict[str, Any]:
    """The content of a checkpoint to resume from.

    The states of network, optimizer and relation preservation are compared with the run's own where they are loaded.

    Args:
        tested: the names of the run's test sets. teacher: the digest of the weights that the run is distilled from.
    Raises:
        UserError: not a checkpoint of this program, of a run with other settings, trained for more epochs than the run
            is to have, or damaged.
    """
    content, where = checkpoint.read(path), f"--resume {path}"
    config = content.get("config")
    if any(name not in content for name in NEEDED) or not isinstance(config, dict) or not config.keys() >= set(SAID):
        raise UserError(f"{where}: not a checkpoint of this program; --source_file starts from its weights")
    known, now = all_flags(options.task), options.flat()
    keys = (*SAME_RUN, *OBJECTIVES[options.objective_name].head_flags)
    for key, value in checkpoint.config_of(content, {key: known[key] for key in keys if key in now}, where).items():
        if value != now[key]:
            raise UserError(f"{where}: it was made with --{key} {shown(value)}, not {now[key]}")
    epoch, best, peaks, amp, scheduler = (
        content.get(name, {}) for name in ("epoch", "best", "peaks", "amp", "scheduler_t")
    )
    if not is_whole(epoch, 1):
        raise UserError(f"{where}: damaged, epoch in it is {shown(epoch)}")
    sound = {
        "best": has_means(best, tested) and is_whole(best.get("epoch"), 0) and _is_finite(best.get("judged")),
        "peaks": has_means(peaks, tested) and len(peaks) == len(tested),
        "pretrained": type(content["pretrained"]) is bool,
        "scheduler_t": isinstance(scheduler, dict) and _is_epoch(scheduler.get("last_epoch"), epoch - 1),
        "split_seen": isinstance(content.get("split_seen", ""), str),
        "amp": isinstance(amp, dict) and all(map(_is_finite, amp.values())),
    }
    sound["best"] = sound["best"] and best["epoch"] < epoch
    for name, is_sound in sound.items():
        if not is_sound:
            raise UserError(f"{where}: damaged, {name} in it is {shown(content.get(name))}")
    if config.get("teacher", "") != teacher:
        raise UserError(
            f"{where}: it was made with {_taught(config.get('teacher'))}, not with {_taught(teacher)}; --source_file "
            "starts from its weights"
        )
    if epoch > options.training.num_epochs:
        raise UserError(
            f"{where}: it has trained {epoch} epochs, more than --num_epochs {options.training.num_epochs}; "
            f"--test_only evaluates it, a --num_epochs above {epoch} goes on"
        )
    return content


def _taught(digest: object) -> str:
    """For a message: by what a run is distilled."""
    return f"--distill of the weights {str(digest)[:12]}" if digest else "no --distill"


def read_metrics(folder: Path, tested: Collection[str], before: int) -> list[dict[str, Any]]:
    """The lines of a job's metrics.jsonl up to an epoch, counted from 0; [] where there is no such file.

    Raises:
        UserError: a line is no epoch of a run with these test sets.
    """
    rows = read_rows(folder / METRICS, "the metrics of a run")
    for row in rows:
        if not has_means(row, tested):
            raise UserError(f"{folder / METRICS}: damaged, epoch {row['epoch']} in it is {shown(row)}")
    return [row for row in rows if row["epoch"] < before]


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Let a job's metrics.jsonl hold these lines alone; none: no file."""
    if rows:
        write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        (folder / METRICS).unlink(missing_ok=True)


def has_means(entry: Any, tested: Collection[str]) -> bool:
    """Whether an entry has the results of all test sets by name."""
    return isinstance(entry, dict) and all(_are_means(entry.get(name)) for name in tested)


def _are_means(values: Any) -> bool:
    """Of losses, which may be infinite, and of accuracies."""
    if not isinstance(values, dict) or any(type(value) not in (int, float) for value in values.values()):
        return False
    return all(_is_finite(values.get(name)) for name in ("prec1", "prec5"))


def _is_epoch(value: object, expected: int) -> bool:
    return is_whole(value, 0) and value == expected


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
