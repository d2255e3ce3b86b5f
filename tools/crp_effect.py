"""What relation preservation did: runs with it and without it, side by side.

    python tools/crp_effect.py --with_crp job1,job2 --without job3,job4 --out results/crp

A run without it is the same program with --crp_weight 0, which measures the relations and leaves them alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib import pyplot as plt

from common.errors import UserError
from common.flags import shown
from common.reading import read_json, read_rows
from common.runs.annotations import NewFolder
from common.runs.tool import run_tool
from tools import pictures

EXPECTED = "the job_dir of a finished run"


@dataclass(frozen=True)
class Measured:
    """What a run measured: mean |D| and the target's top-1 (%) of every epoch, and that of the best epoch."""

    shifts: list[float]
    target: list[float]
    best: float
    demo: bool


def read(folder: Path) -> Measured:
    """A finished run that measured its relations.

    Raises:
        UserError: not the folder of one, or its files are damaged.
    """
    try:
        summary = read_json(folder / "summary.json", EXPECTED)
        rows = read_rows(folder / "metrics.jsonl", EXPECTED)
        if "relation_shift" not in rows[-1]:
            raise UserError(f"{folder}: this run did not measure its relations; train it in a daq_crp folder")
        return Measured(
            shifts=[float(row["relation_shift"]["mean"]) for row in rows],
            target=[float(row["target"]["prec1"]) for row in rows],
            best=float(summary["best"]["target"]["prec1"]),
            demo=bool(summary["demo"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not the files of a finished run ({shown(error)})") from None


def crp_effect(*, with_crp: tuple[Path, ...], without: tuple[Path, ...], out: NewFolder = Path("results/crp")) -> None:
    """Print mean |D| at the end and target accuracy of both groups, and draw crp.png.

    Args:
        with_crp: job folders, commas between them.
        without: the same, of the runs without it.
        out: folder of the picture.
    """
    groups = {"with CRP": [read(folder) for folder in with_crp], "without": [read(folder) for folder in without]}
    for name, runs in groups.items():
        if len(lengths := {len(run.shifts) for run in runs}) > 1:
            raise UserError(f"{name}: runs of {' and '.join(map(str, sorted(lengths)))} epochs; expected equally many")
    demo = "demo " if any(run.demo for runs in groups.values() for run in runs) else ""
    figure, (shift, accuracy) = plt.subplots(2, 1, figsize=(6, 7.5))
    print(f"| | runs | mean abs D, last epoch | {demo}target top-1 (%), last epoch | best epoch |")
    print("|---|---:|---:|---:|---:|")
    for index, (name, runs) in enumerate(groups.items()):
        shifts = np.array([run.shifts for run in runs])
        target = np.array([run.target for run in runs])
        best = np.array([run.best for run in runs])
        columns = [f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}"
                   for values, digits in ((shifts[:, -1], 4), (target[:, -1], 2), (best, 2))]  # fmt: skip
        print(f"| {name} | {len(runs)} | " + " | ".join(columns) + " |")
        for axes, curves in ((shift, shifts), (accuracy, target)):
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.T, color=pictures.colour(index), lw=0.6, alpha=0.5)
            axes.plot(epochs, curves.mean(0), color=pictures.colour(index), lw=2, label=name)
    shift.set(
        xlabel="epoch", ylabel="mean |D| over layers, domains and entries", title="relation shift", ylim=(0, None)
    )
    accuracy.set(xlabel="epoch", ylabel="top-1 (%)", title=f"{demo}target accuracy")
    for axes in (shift, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    print(f"picture: {pictures.save(figure, out / 'crp.png')}")


if __name__ == "__main__":
    run_tool(crp_effect)
