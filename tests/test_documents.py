"""The documents hold: their links lead somewhere, what they name exists, and their commands are ones that programs take."""

import re
from pathlib import Path

import pytest

from common.errors import UserError
from common.flags import Flag
from tests.conftest import REPOSITORY
from tests.documented import (
    FENCED,
    SHELL,
    check,
    check_flag,
    flags_in_prose,
    known_flags,
    typed_in_blocks,
    typed_in_prose,
)

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
POINTING = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs" / "design.md"]
LINK = re.compile(r"\]\(([^)\s]+)")
# `path/file.py`, `common/folder`, `path/file.py::Class.method`, and `::name` in the file named last
POINTER = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.py|(?:common|docs|tests|tools)/[\w/-]+)?(?:::([\w.]+))?`")
PLACEHOLDER = "NAME.py"
LANDING = 150  # lines of README.md


@pytest.fixture(scope="module")
def every_flag() -> dict[str, list[Flag]]:
    return known_flags()


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_one_that_its_program_takes(document: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = document.read_text()
    for typed in (*typed_in_blocks(text), *typed_in_prose(text)):
        try:
            check(typed)
        except (AssertionError, UserError) as error:
            pytest.fail(f"{document.name}: {typed}\n{error}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_flag_that_is_named_is_one_of_a_program(document: Path, every_flag: dict[str, list[Flag]]) -> None:
    for words in flags_in_prose(document.read_text()):
        try:
            check_flag(words, every_flag)
        except (AssertionError, UserError) as error:
            pytest.fail(f"{document.name}: {' '.join(words)}\n{error}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_stand_in_blocks_of_shell(document: Path) -> None:
    rest = SHELL.sub("", document.read_text())
    assert not re.findall(r"^ *(?:python|alignq|tox|cd) .*$", rest, re.MULTILINE)


@pytest.mark.parametrize(
    "block",
    [
        "python tools/export.py --checkpoint a.pt --out a.safetensors --fromat onnx",
        "python tools/export.py --checkpoint a.pt --out a.safetensors --format tflite",
        "python tools/nowhere.py",
        "python main.py --demo",  # of which folder?
        "cd single_domain/resnet20\npython tools/export.py --checkpoint a.pt --out a.safetensors",
        "cd single_domain/resnet20\npython main.py --bitW 9",
        "cd single_domain/resnet20\npython main.py --method apot --bitW 8",
        "cd cross_domain/dann_digits/daq_crp\nfor s in x 1; do python main.py --seed $s; done",
        "python tools/compare.py --methods ours --bits 4 --seeds 1 --train_batch_size none",
        "alignq train nowhere --demo",
        "alignq exprot --checkpoint a.pt",
        "tox run -e nowhere",
        "unknown program",
    ],
)
def test_a_command_that_would_fail_is_noticed(block: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    *before, last = typed_in_blocks(f"```shell\n{block}\n```\n")
    assert not before
    with pytest.raises((AssertionError, UserError)):
        check(last)


def test_the_readme_is_a_landing_page() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= LANDING
