"""The results of real runs in the documents: docs/results.md and its pictures, drawn from docs/results/*.jsonl.

    python tools/results.py

`python tools/study.py` writes those files. No number of the page is typed by hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data.locate import REPOSITORY
from common.errors import UserError
from common.reading import read_text
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.runs.result_page import BLOCK, block_of, draw, fill
from tools.runs.study import Row, read, read_lines


def results(*, docs: Path = REPOSITORY / "docs", check: bool = False) -> None:
    """Write every block of DOCS/results.md anew, and the picture of every study that has results.

    Args:
        docs: folder with results.md, studies/NAME.json and results/NAME.jsonl.
        check: write nothing, and fail where the page is not what the results say.
    """
    page = docs / "results.md"
    text = read_text(page, "the page of results")
    drawn = fill(text, lambda name: block_of(read(docs / "studies" / f"{name}.json"), rows_of(docs, name)))
    if check:
        if drawn != text:
            raise UserError(f"{page} is not what docs/results says; python tools/results.py writes it anew")
        return
    write_whole(page, drawn)
    for _, name, _ in BLOCK.findall(drawn):
        if rows := rows_of(docs, name):
            print(draw(read(docs / "studies" / f"{name}.json"), rows, docs / "results" / f"{name}.png"))
    print(page)


def rows_of(docs: Path, name: str) -> list[Row]:
    """The lines of DOCS/results/NAME.jsonl."""
    return read_lines(docs / "results" / f"{name}.jsonl")


if __name__ == "__main__":
    run_tool(results)
