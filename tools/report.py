"""One HTML page of any set of job folders: tables, curves, layers, features. It needs nothing but itself to open.

python tools/report.py results/compare/resnet20_demo --out report.html
python tools/report.py "experiment/ours/*" experiment/float/res20_32bit
"""

import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from page.document import render  # noqa: E402
from page.jobs import find, read_all  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402
from common.writing import write_whole  # noqa: E402


def report(*jobs: Any, out: str = "results/report.html", every_seed: bool = False, **unknown: Any) -> None:
    """Write one self-contained page about the jobs: it opens offline, on a phone too.

    Runs without a result (unfinished, broken) are listed as such, on the page and on stderr.

    Args:
        jobs: job folders, folders that hold some (such as those of compare.py), or patterns such as "results/*/s?".
        out: the page; an earlier one is replaced.
        every_seed: draw the layers of every run; otherwise of one run where several differ in the seed alone.
    """
    if unknown:
        raise UserError(f"unknown flag --{next(iter(unknown))}; --help lists the flags")
    if not isinstance(every_seed, bool):
        raise UserError(f"--every_seed {every_seed}: expected True, False or the flag alone")
    patterns = [str(word) for job in jobs for word in (job if isinstance(job, (tuple, list)) else [job])]
    if not patterns:
        raise UserError("expected job folders, such as: python tools/report.py results/compare/resnet20_demo")
    path = Path(str(out))
    if path.is_dir():
        raise UserError(f"--out {path}: a folder; expected a file such as {path / 'report.html'}")
    runs = read_all(find(patterns))
    page = render(runs, every_seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    for run in runs:
        for line in [run.problem] if run.problem else run.notes:
            print(f"{run.folder}: {line}", file=sys.stderr)
    finished = sum(not run.problem for run in runs)
    print(f"{path}: {finished} of {len(runs)} runs with a result, {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_tool(report)
