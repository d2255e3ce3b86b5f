"""One HTML page of any set of job folders: tables, curves, layers, features. It needs nothing but itself to open.

python tools/report.py results/compare/resnet20_demo --out report.html
python tools/report.py "experiment/ours/*" experiment/float/res20_32bit
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from common.runs.annotations import NewFile
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.page.document import render
from tools.page.jobs import find, read_all


def report(*jobs: str, out: NewFile = Path("results/report.html"), every_seed: bool = False) -> None:
    """Write one self-contained page about the jobs: it opens offline, on a phone too.

    Runs without a result (unfinished, broken) are listed as such, on the page and on stderr.

    Args:
        jobs: job folders, folders that hold some (such as those of compare.py), or patterns such as "results/*/s?".
        out: the page; an earlier one is replaced.
        every_seed: draw the layers of every run; otherwise of one run where several differ in the seed alone.
    """
    if not jobs:
        raise UserError("expected job folders, such as: python tools/report.py results/compare/resnet20_demo")
    runs = read_all(find(jobs))
    page = render(runs, every_seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page)
    for run in runs:
        for line in [run.problem] if run.problem else run.notes:
            print(f"{run.folder}: {line}", file=sys.stderr)
    finished = sum(not run.problem for run in runs)
    print(f"{out}: {finished} of {len(runs)} runs with a result, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_tool(report)
