"""Measured results in README.md and docs/{results,shipping}.md, and their pictures, from docs/results/*.jsonl.

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
from tools import pictures
from tools.runs import parity_page
from tools.runs.result_page import BLOCK, block_of, draw, fill, summary_of
from tools.runs.study import Row, read, read_lines

FORMS = {"results": block_of, "summary": summary_of}


def results(*, docs: Path = REPOSITORY / "docs", check: bool = False) -> None:
    """Write every block of DOCS/results.md, DOCS/shipping.md and README.md beside DOCS anew, and the pictures.

    Args:
        docs: folder with these pages, studies/NAME.json and results/NAME.jsonl, the lines of tools/deploy_benchmark.py
            in results/int8.jsonl, and those of tools/parity.py in results/parity.jsonl.
        check: write nothing, and fail where a page is not what the results say.
    """

    def block(kind: str, name: str) -> str:
        if kind == "parity":
            return parity_page.block_of(rows_of(docs, name))
        return FORMS[kind](read(docs / "studies" / f"{name}.json"), rows_of(docs, name))

    page, others = docs / "results.md", (docs / "shipping.md", docs.absolute().parent / "README.md")
    drawn = {}
    for path in (page, *filter(Path.exists, others)):
        text = read_text(path, "a page of results")
        drawn[path] = fill(text, block)
        if check and drawn[path] != text:
            raise UserError(f"{path} is not what docs/results says; python tools/results.py writes it anew")
    if check:
        return
    for path, text in drawn.items():
        write_whole(path, text)
    for _, _, name, _ in BLOCK.findall(drawn[page]):
        if rows := rows_of(docs, name):
            print(draw(read(docs / "studies" / f"{name}.json"), rows, docs / "results" / f"{name}.png"))
    if speeds := read_lines(docs / "results" / "int8.jsonl"):
        print(pictures.save(pictures.speed_panels(speeds), docs / "int8.png"))
    print("\n".join(map(str, drawn)))


def rows_of(docs: Path, name: str) -> list[Row]:
    """The lines of DOCS/results/NAME.jsonl."""
    return read_lines(docs / "results" / f"{name}.jsonl")


if __name__ == "__main__":
    run_tool(results)
