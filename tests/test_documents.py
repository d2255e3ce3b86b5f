"""The documents hold: their links lead somewhere, and the files, functions and tests that they name exist."""

import re
import shlex
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
LANDING = 150  # lines of README.md
SHELL = re.compile(r"^```shell\n(.*?)^```", re.MULTILINE | re.DOTALL)


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


def commands(document: Path) -> list[list[str]]:
    """The words of every line in a shell block that runs a program of this repository."""
    lines = "".join(SHELL.findall(document.read_text())).splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.search(r"python (?:\S*tools/|main\.py)", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_programs_and_flags_that_exist(document: Path) -> None:
    folders = [REPOSITORY / "common", REPOSITORY / "tools"]
    known = set(re.findall(r"\w+", "".join(file.read_text() for folder in folders for file in folder.rglob("*.py"))))
    for words in commands(document):
        for word in words:
            if "tools/" in word and word.endswith(".py"):
                assert (REPOSITORY / word[word.index("tools/") :]).exists(), f"{document.name} runs {word}"
            if word.startswith("--"):
                flag = word[2:].split("=")[0]
                assert flag in known, f"{document.name} types {word}, a flag that no program has"


def test_the_readme_is_a_landing_page() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= LANDING
