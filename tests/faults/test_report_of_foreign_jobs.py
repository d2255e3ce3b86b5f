"""The page of a job whose files somebody else wrote: what they say is text, and what cannot be read is a line."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import somewhere, type_in
from tests.faults.test_entries import places, spoilt

MARKUP = '<script>alert(1)</script><img src=x onerror="alert(2)">\x1b[31m\n{{ 7 * 7 }}$\\frac{'
FILES = ("config.json", "summary.json", "metrics.jsonl")
STRIDE = 25  # of the entries: all with every value take minutes
FOREIGN: dict[str, Any] = {
    "markup": MARKUP,
    "nested": [{"a": [[MARKUP]]}],
    "huge": 10**400,
    "negative": -1,
    "null": None,
}


def cases(world: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every entry of the first two levels of a job's files."""
    for name in FILES:
        for path in places(
            json.loads(
                (world / "job" / name).read_text().splitlines()[0]
                if "l" in name[-1]
                else (world / "job" / name).read_text()
            )
        ):
            if len(path) <= 2:
                yield name, path


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_values_in_a_jobs_files(what: str, world: Path, tmp_path: Path) -> None:
    with somewhere(tmp_path / "here") as here:
        shutil.copytree(world / "job", "job")
        shutil.rmtree(here / "job" / "checkpoint")  # whose pictures take their time
        for name, path in list(cases(world))[list(FOREIGN).index(what) :: STRIDE]:
            whole = (world / "job" / name).read_text()
            (here / "job" / name).write_text(json.dumps(spoilt(json.loads(whole), path, FOREIGN[what])) + "\n")
            page(here, f"{name} {path} {what}")
            (here / "job" / name).write_text(whole)


def page(here: Path, case: str) -> None:
    ended = type_in("report", "job", "--out=page.html")
    assert ended.status == 0, f"{case}: {ended.err}"
    assert "Traceback" not in ended.err
    assert "\x1b" not in ended.err + ended.out, case
    text = (here / "page.html").read_text(encoding="utf-8")
    for raw in ("<script>alert", "<img src=x", "\x1b", " 49$"):
        assert raw not in text, f"{case}: {raw}"
    assert re.search("job", text)
