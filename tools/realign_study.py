"""What re-alignment gains and what it harms, measured on finished runs; docs/realignment.md says what it found.

    python tools/realign_study.py results/realign/*_seed0

Every network and every domain of its data is a line of docs/results/realign.jsonl. What has its line is not measured
again: the same command continues a study. Without runs it only writes the page and its picture anew.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.locate import REPOSITORY
from common.errors import UserError
from common.reading import read_objects, read_text
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.runs.realign_measure import Row, Trained, read
from tools.runs.realign_page import block_of, draw, draw_sizes
from tools.runs.result_page import fill


def realign_study(
    *runs: Path, docs: Path = REPOSITORY / "docs", data_dir: Path | None = None, check: bool = False
) -> None:
    """Measure what is left of the runs, and write the page and its picture.

    Args:
        runs: job_dirs of finished runs of main.py; their last epoch is taken.
        docs: folder with realignment.md and results/realign.jsonl.
        data_dir: folder of the data (default: as the programs have it).
        check: write nothing, and fail where the page is not what the lines say.
    """
    file, page = docs / "results" / "realign.jsonl", docs / "realignment.md"
    rows = read_objects(file, "the results of a study of re-alignment")
    for trained in map(read, runs):
        for row in _missing(trained, rows, data_dir):
            rows.append(row)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(json.dumps(one) + "\n" for one in rows))
            print(f"{row['run']}: {row['domain']}, {row['before']:.2f} before", flush=True)
    text = read_text(page, "the page of re-alignment")
    drawn = fill(text, lambda _, name: block_of(name, rows))
    if check:
        if drawn != text:
            raise UserError(f"{page} is not what {file} says; python tools/realign_study.py writes it anew")
        return
    write_whole(page, drawn)
    for name, demo in (("realignment", False), ("realignment_demo", True)):
        if some := [row for row in rows if row["demo"] == demo]:
            print(draw(some, docs / f"{name}.png"), draw_sizes(some, docs / f"{name}_sizes.png"), sep="\n")
    print(page)


def _missing(trained: Trained, rows: list[Row], data_dir: Path | None) -> Iterator[Row]:
    there = {row["domain"] for row in rows if row["base"] == trained.base}
    for domain in trained.domains(data_dir):
        if domain.name not in there:
            yield trained.row(domain)


if __name__ == "__main__":
    run_tool(realign_study)
