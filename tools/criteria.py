"""Whether criteria without target labels rank a run's epochs as the target's accuracy does.

    python tools/criteria.py experiment/demo/ours/mnist_mnistm_4bit JOB...

For each job of a cross-domain program: Spearman's rank correlation, over its epochs, of each criterion of --select and
of the source's accuracy with the target's test accuracy; and the mean over the jobs.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scipy.stats import spearmanr

from common.errors import UserError
from common.measure.criteria import CRITERIA
from common.runs.annotations import NewFile
from common.runs.progress import read_metrics
from common.runs.tool import run_tool
from common.writing import write_whole

FEWEST = 3  # epochs, below which a rank says nothing


def criteria(*jobs: Path, out: NewFile | None = None) -> None:
    """Print a table of rank correlations, a row for each job and their mean.

    Args:
        jobs: folders of finished or running jobs.
        out: also write the rows there, a JSON object a line.
    """
    if not jobs:
        raise UserError("expected folders of jobs, such as experiment/demo/ours/mnist_mnistm_4bit")
    names = [*CRITERIA, "source accuracy"]
    print("| job | epochs | " + " | ".join(names) + " |\n|---|" + "---:|" * (len(names) + 1))
    rows = []
    for job in jobs:
        found, epochs = correlations(job)
        rows.append((job, found, epochs))
        print(f"| {job.name} | {epochs} | " + " | ".join(f"{value:.2f}" for value in found) + " |")
    if out:
        lines = [
            json.dumps({"job": job.name, "epochs": epochs, **dict(zip(names, found, strict=True))})
            for job, found, epochs in rows
        ]
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, "\n".join(lines) + "\n")
    print(
        "| mean | | "
        + " | ".join(f"{fmean(column):.2f}" for column in zip(*(found for _, found, _ in rows), strict=True))
        + " |"
    )


def correlations(job: Path) -> tuple[list[float], int]:
    """Of each criterion and of the source's accuracy, and over how many epochs; a constant has 0.

    Raises:
        UserError: not a cross-domain job with these criteria in its metrics, or too few epochs.
    """
    rows = read_metrics(job, ("target", "source"), before=sys.maxsize)
    if len(rows) < FEWEST or not all(CRITERIA.keys() <= row["target"].keys() for row in rows):
        raise UserError(
            f"{job}: {len(rows)} epochs with label-free criteria in its metrics; expected a cross-domain job of at "
            f"least {FEWEST}"
        )
    accuracy = [row["target"]["prec1"] for row in rows]
    columns = [[row["target"][name] for row in rows] for name in CRITERIA]
    columns.append([row["source"]["prec1"] for row in rows])
    constant = len(set(accuracy)) == 1
    return [
        0.0 if constant or len(set(column)) == 1 else float(spearmanr(column, accuracy).statistic) for column in columns
    ], len(rows)


if __name__ == "__main__":
    run_tool(criteria)
