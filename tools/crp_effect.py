"""What relation preservation did: runs with it and without it, side by side.

    python tools/crp_effect.py --with_crp job1,job2 --without job3,job4 --out results/crp

A run without it is the same program with --crp_weight 0, which measures the relations and leaves them alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402
import pictures  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402


def read(folder: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and epochs of a finished run that measured its relations."""
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text())
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: there is no such file; expected the job_dir of a finished run") from None
    if "relation_shift" not in rows[-1]:
        raise UserError(f"{folder}: this run did not measure its relations; train it in a daq_crp folder")
    return summary, rows


def effect(with_crp: Any, without: Any, out: str = "results/crp") -> None:
    """Print mean |D| at the end and target accuracy of both groups, and draw crp.png into ``out``.

    Args:
        with_crp, without: job folders, commas between them.
    """
    groups = {}
    for name, value in (("with CRP", with_crp), ("without", without)):
        folders = value if isinstance(value, (tuple, list)) else str(value).split(",")
        groups[name] = [read(str(folder)) for folder in folders]
    demo = "demo " if any(summary["demo"] for runs in groups.values() for summary, _ in runs) else ""
    figure, (shift, accuracy) = plt.subplots(1, 2, figsize=(11, 4))
    print(f"| | runs | mean abs D, last epoch | {demo}target top-1 (%), last epoch | best epoch |")
    print("|---|---:|---:|---:|---:|")
    for index, (name, runs) in enumerate(groups.items()):
        shifts = np.array([[row["relation_shift"]["mean"] for row in rows] for _, rows in runs])
        target = np.array([[row["target"]["prec1"] for row in rows] for _, rows in runs])
        best = np.array([summary["best"]["target"]["prec1"] for summary, _ in runs])
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
    print(f"picture: {pictures.save(figure, Path(out) / 'crp.png')}")


if __name__ == "__main__":
    run_tool(effect)
