"""The documents hold: their links lead somewhere, and the files, functions and tests that they name exist."""

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
POINTING = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs" / "design.md"]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)")
# `path/file.py`, `common/folder`, `path/file.py::Class.method`, and `::name` in the file named last
POINTER = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.py|(?:common|docs|tests|tools)/[\w/-]+)?(?:::([\w.]+))?`")
PLACEHOLDER = "NAME.py"


def prose(document: Path) -> str:
    return FENCED.sub("", document.read_text())


def anchors(document: Path) -> set[str]:
    """The fragments of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def defines(source: str, name: str) -> bool:
    return re.search(rf"^ *(?:def|class) {name}\b|^{name}\b", source, re.MULTILINE) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    links = [link for link in LINK.findall(prose(document)) if not re.match(r"[a-z]+:", link)]
    for link in links:
        path, _, fragment = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not fragment or fragment in anchors(target), (
            f"{document.name} links to {link}, a heading that is not there"
        )


@pytest.mark.parametrize("document", POINTING, ids=lambda path: path.name)
def test_named_files_functions_and_tests_exist(document: Path) -> None:
    pointers = [match for match in POINTER.findall(prose(document)) if any(match)]
    assert pointers
    file = ""
    for path, name in pointers:
        file = path or file
        place = REPOSITORY / file
        if place.name == PLACEHOLDER:
            place = place.parent
        assert place.exists(), f"{document.name} names {file}"
        for part in name.split(".") if name else ():
            assert defines(place.read_text(), part), f"{document.name} names {file}::{name}"
