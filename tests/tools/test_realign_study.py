"""The study of re-alignment: its page says what its lines say, a small one is measured, continued and drawn."""

import json
from pathlib import Path

import pytest

from tests.conftest import run
from tests.tools.entry import refused, type_in
from tools.runs import realign_measure

PAGE = "".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in ("demo-corrupted", "demo-clean", "corrupted"))
LINES = "results/realign.jsonl"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "realignment.md").write_text(PAGE)
    return tmp_path / "docs"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("jobs") / "ours_4bit"
    words = ["--demo", "--data_dir", small_data, "--bitW", 4, "--pretrained", "no", "--num_epochs", 1]
    assert run("single_domain/resnet20", *words, "--job_dir", folder).returncode == 0
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "COUNTS": (1, 64, 256),
        "TESTED": 20,
        "CLEAN": 30,
        "STREAM": 16,
        "TIMED": 8,
        "ROUNDS": 3,
    }.items():
        monkeypatch.setattr(realign_measure, name, value)


def test_the_page_says_what_the_lines_say() -> None:
    assert type_in("realign_study", "--check") == (0, "", "")


def test_a_run_becomes_a_line_a_domain_which_is_not_measured_again(
    docs: Path, job: Path, small_data: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (job, "--docs", docs, "--data_dir", small_data)
    status, out, err = type_in("realign_study", *words)
    assert status == 0, err
    rows = [json.loads(line) for line in (docs / LINES).read_text().splitlines()]
    assert [row["domain"] for row in rows] == ["clean", "noise", "blur", "contrast", "brightness"]
    for row in rows:
        assert (row["method"], row["bits"], row["demo"], row["epochs"]) == ("ours", 4, True, 1)
        assert (len(row["with"]["1"]), len(row["with"]["64"])) == (realign_measure.DRAWS, 1)
        assert row["without"].keys() == {"64", "256"}, "one image does not go without a prior"
        assert all(0 <= value <= 100 for value in (row["before"], *row["with"]["64"], *row["without"]["64"]))
    assert len(rows[0]["one_class"]["stream"]) == 10
    assert rows[0]["time"].keys() == {"at_once", "batches"}
    page = (docs / "realignment.md").read_text()
    assert f"| ours | 4 | {sum(row['before'] for row in rows[1:]) / 4:.1f} |" in page
    assert (docs / "realignment_demo.png").stat().st_size > 0
    assert out.count("before\n") == 5

    before = (docs / LINES).read_bytes()
    (docs / LINES).write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    monkeypatch.setattr(realign_measure.Trained, "_one_class", None)  # what is there is not measured
    status, out, _ = type_in("realign_study", *words)
    assert (status, out.count("before\n")) == (0, 1)
    assert (docs / LINES).read_bytes() == before, "the same, drawn again"


def test_a_number_changed_by_hand_is_noticed(docs: Path) -> None:
    assert "is not what" in refused("realign_study", "--docs", docs, "--check")
    assert type_in("realign_study", "--docs", docs)[0] == 0
    assert type_in("realign_study", "--docs", docs, "--check")[0] == 0


def test_what_is_no_finished_run_is_one_line(docs: Path, tmp_path: Path) -> None:
    assert "no finished run" in refused("realign_study", tmp_path / "nothing", "--docs", docs)
    (docs / "results").mkdir()
    (docs / LINES).write_text("{]\n")
    assert "realign.jsonl" in refused("realign_study", "--docs", docs)
    assert "the page of re-alignment" in refused("realign_study", "--docs", tmp_path / "elsewhere")
