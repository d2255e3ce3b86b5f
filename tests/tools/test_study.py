"""Studies: what is run, from what, and that the page of results says what the runs found and nothing else."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from common.data.locate import REPOSITORY
from tests.tools.entry import refused, type_in
from tools.results import rows_of
from tools.runs import parity_page
from tools.runs.result_page import BLOCK, block_of, draw, fill, summary_of, verdict
from tools.runs.study import plan_of, read, selections

STUDIES = sorted((REPOSITORY / "docs" / "studies").glob("*.json"))
SMALL = {
    "title": "Two networks",
    "data": "demo digits",
    "budget": "an epoch",
    "seeds": [0, 1],
    "program": "cross_domain/dann_digits/cdf_alignment",
    "flags": {"num_epochs": 2, "select": "last", "demo": True},
    "runs": [
        {"name": "float", "title": "float", "flags": {"bitW": 32, "abitW": 32}},
        {
            "name": "crp",
            "title": "ours with CRP",
            "from": "float",
            "program": "cross_domain/dann_digits/daq_crp",
            "flags": {"bitW": 4, "abitW": 4},
        },
    ],
    "claims": [{"says": "Four bits are enough", "with": "crp", "without": "float"}],
}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs" / "studies").mkdir(parents=True)
    write(tmp_path / "docs", SMALL)
    return tmp_path / "docs"


def write(docs: Path, content: Any) -> Path:
    path = docs / "studies" / "small.json"
    path.write_text(json.dumps(content))
    return path


def finish(job: Path, bits: int, seed: int, accuracies: list[float]) -> None:
    """What a run leaves behind that found these accuracies, epoch by epoch."""
    job.mkdir(parents=True)
    found = {"epoch": len(accuracies) - 1, "target": {"prec1": accuracies[-1]}, "source": {"prec1": 99.0}}
    about = {"task": "dann_digits", "model": "MNISTmodel_quant", "method": "ours", "bitW": bits, "abitW": bits}
    layers = [{"weight_levels": 16, "input_levels": None}, {"weight_levels": 16, "input_levels": 9}]
    rest = {"seed": seed, "protocol": "training split for training", "last": found, "layers": layers, "crp": bits == 4}
    (job / "summary.json").write_text(json.dumps({**about, **rest, "adaptation": "dann"}))
    rows = [
        {
            "epoch": epoch,
            "target": {"prec1": value, "entropy": -epoch, "im": epoch, "snd": 1.0},
            "source": {"prec1": 99 - epoch},
        }
        for epoch, value in enumerate(accuracies)
    ]
    (job / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_of_the_documents_are_commands_that_main_py_takes(path: Path, tmp_path: Path) -> None:
    status, said, err = type_in("study", path, "--out", tmp_path / "out", "--dry_run")
    assert status == 0, err
    described = read(path)
    assert len(said.splitlines()) == len(described.runs) * len(described.seeds) * len(described.pairs)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_line_of_a_result_names_its_data_epochs_seed_and_a_command_of_the_repository(path: Path) -> None:
    for row in rows_of(REPOSITORY / "docs", path.stem):
        assert row["data"]
        assert row["epochs"] >= 1
        assert 0 <= row["top1"]["last"] <= 100
        python, program, *words = shlex.split(str(row["command"]))
        assert python == "python"
        assert (REPOSITORY / program).exists()
        assert words[words.index("--seed") + 1] == str(row["seed"])
        assert not any(word.startswith("/") for word in words), "nothing of the machine that it ran on"


def test_the_page_of_results_says_what_the_results_say() -> None:
    assert type_in("results", "--check") == (0, "", "")


def test_the_table_of_equal_classes_has_the_worst_form_and_all_codes() -> None:
    exact, near = ({"same": same, "codes": 10, "different": 10 - same // 10, "unexplained": 0} for same in (100, 90))
    rows = [
        {"network": "net", "method": method, "images": 5, "forms": forms}
        for method, forms in (("ours", {"a": exact, "b": near, "c": {"same": 95}}), ("lsq", {"a": exact}))
    ]
    table = parity_page.block_of([*rows, {**rows[0], "network": "other", "forms": {"a": exact}}])
    assert "| net | 5 | 90.00 (3) | 100.00 (1) |\n| other | 5 | 100.00 (1) | – |" in table
    assert "Codes compared: 40; 1 differ, 0 of them unexplained" in table


def test_the_picture_of_speeds_has_the_figures_of_its_table() -> None:
    page = (REPOSITORY / "docs" / "speed.md").read_text()
    cells = {(float(ms), float(times)) for ms, times in re.findall(r"([\d.]+) \(([\d.]+) x\)", page)}
    lines = [json.loads(line) for line in (REPOSITORY / "docs" / "results" / "int8.jsonl").read_text().splitlines()]
    assert lines
    assert all((line["ms"], line["times_faster"]) in cells for line in lines)


def test_a_number_changed_by_hand_is_noticed_and_written_anew(docs: Path) -> None:
    page = docs / "results.md"
    page.write_text("before\n<!-- results: small -->\n<!-- end -->\nafter\n")
    assert type_in("results", "--docs", docs)[0] == 0
    whole = page.read_text()
    assert whole.startswith("before\n")
    assert whole.endswith("after\n")
    page.write_text(whole.replace("No run", "Each run"))
    assert "is not what docs/results says" in refused("results", "--docs", docs, "--check")
    type_in("results", "--docs", docs)
    assert page.read_text() == whole


def test_a_run_starts_from_the_one_of_its_own_seed_and_a_finished_one_is_left_out(docs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(out / "float_seed1", 32, 1, [40.0, 50.0])
    status, said, err = type_in("study", docs / "studies" / "small.json", "--out", out, "--dry_run", "--lr", "0.5")
    assert status == 0, err
    first, second, third = map(shlex.split, said.splitlines())
    assert [words[words.index("--job_dir") + 1] for words in (first, second, third)] == [
        str(out / name) for name in ("float_seed0", "crp_seed0", "crp_seed1")
    ]
    assert "daq_crp/main.py" in third[1]
    assert third[third.index("--source_file") + 1] == "float_seed1/checkpoint/model_best.pt"
    assert third[third.index("--lr") + 1] == "0.5"


def test_finished_runs_become_lines_a_table_a_picture_and_a_verdict(docs: Path, tmp_path: Path) -> None:
    out, study = tmp_path / "out", read(docs / "studies" / "small.json")
    for seed, (of_float, of_crp) in enumerate(((50.0, 52.0), (51.0, 53.5))):
        finish(out / f"float_seed{seed}", 32, seed, [60.0, of_float])
        finish(out / f"crp_seed{seed}", 4, seed, [70.0, of_crp])
    data = ("--data_dir", tmp_path)
    status, said, err = type_in("study", docs / "studies" / "small.json", "--out", out, *data)
    assert status == 0, err
    assert "4 of 4 runs are finished here" in said
    rows = rows_of(docs, "small")
    assert rows[1]["top1"] == {"last": 52.0, "target": 70.0, "source": 70.0, "entropy": 70.0, "im": 52.0, "snd": 70.0}
    assert str(tmp_path) not in json.dumps(rows)
    block = block_of(study, rows)
    assert "| float | 32 | 2 | 50.50 ± 0.71 |" in block
    assert "| ours with CRP | 4 | 2 | 52.75 ± 1.06 | 70.00 ± 0.00 |" in block
    assert "Four bits are enough: 52.75 ± 1.06 against 50.50 ± 0.71, +2.25 points; 2 seeds, so no verdict" in block
    front = tmp_path / "README.md"
    front.write_text("<!-- summary: small -->\n<!-- end -->\n")
    (docs / "results.md").write_text(fill("<!-- results: small -->\n<!-- end -->", lambda *_: ""))
    assert type_in("results", "--docs", docs)[0] == 0
    assert block in (docs / "results.md").read_text()
    assert "| ours with CRP | 4 | 2 | 52.75 ± 1.06 | 2 |" in front.read_text()
    front.write_text(front.read_text().replace("52.75", "62.75"))
    assert "README.md is not what docs/results says" in refused("results", "--docs", docs, "--check")
    assert (docs / "results" / "small.png").stat().st_size > 1000
    assert BLOCK.search((docs / "results.md").read_text())


PAIRS = (("mnist", "mnistm"), ("mnistm", "mnist"))


def test_a_study_of_several_pairs_runs_everything_on_each_and_means_over_whole_seeds_alone(
    docs: Path, tmp_path: Path
) -> None:
    out, path = tmp_path / "out", write(docs, {**SMALL, "pairs": PAIRS})
    finish(out / "float_mnist_mnistm_seed0", 32, 0, [60.0, 50.0])
    status, said, err = type_in("study", path, "--out", out, "--dry_run")
    assert status == 0, err
    commands = [shlex.split(line) for line in said.splitlines()]
    assert len(commands) == 7
    assert commands[0][commands[0].index("--source_file") + 1] == "float_mnist_mnistm_seed0/checkpoint/model_best.pt"
    for words in commands:
        typed = [words[words.index(name) + 1] for name in ("--src_data", "--tgt_data", "--job_dir")]
        assert "_".join(typed[:2]) in typed[2]
    finish(out / "float_mnistm_mnist_seed0", 32, 0, [70.0, 80.0])
    for (source, target), seed, top1 in ((PAIRS[0], 0, 52.0), (PAIRS[1], 0, 83.0), (PAIRS[0], 1, 10.0)):
        finish(out / f"crp_{source}_{target}_seed{seed}", 4, seed, [top1, top1])
    plan_of(read(path), {}, out, docs / "results" / "small.jsonl").collect(out)
    rows = rows_of(docs, "small")
    assert [(row["run"], row["pair"], row["seed"]) for row in rows] == [
        *((run, list(pair), 0) for pair in PAIRS for run in ("float", "crp")),
        ("crp", ["mnist", "mnistm"], 1),
    ]
    block = block_of(read(path), rows)
    assert "| float | 32 | 2 | 65.00 |" in block
    assert "| ours with CRP | 4 | 2 | 67.50 |" in block, "the second seed lacks a pair and does not count"
    assert "| last epoch | bits | mnist to mnistm | mnistm to mnist |" in block
    assert "| ours with CRP | 4 | 31.00 ± 29.70 | 83.00 |" in block
    assert "| ours with CRP | 4 | 2 | 67.50 | 1 |" in summary_of(read(path), rows), "and is not counted"
    fewer = block_of(read(path), [row for row in rows if row["run"] == "float" or row["pair"] == list(PAIRS[0])])
    assert "the mean over the pairs that every network has: mnist to mnistm" in fewer
    assert "| float | 32 | 2 | 50.00 |" in fewer, "means over what every run has"
    assert "| ours with CRP | 4 | 2 | 31.00 ± 29.70 |" in fewer
    no_common = [rows[0], rows[3]]
    assert "| float | 32 | 2 | – |" in block_of(read(path), no_common)
    assert draw(read(path), no_common, tmp_path / "none.png").exists()
    claim = verdict({(row["run"], (tuple(row["pair"]), row["seed"])): row for row in rows}, "crp", "float")
    assert claim == "67.50 ± 21.92 against 65.00 ± 21.21, +2.50 points; 1 seed, 2 pairs and seeds, so no verdict"


def test_what_a_study_found_before_stays_where_its_runs_are_not(docs: Path, tmp_path: Path) -> None:
    lines = docs / "results" / "small.jsonl"
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    finish(elsewhere / "float_seed0", 32, 0, [50.0])
    finish(elsewhere / "float_seed1", 32, 1, [51.0])
    plan_of(read(docs / "studies" / "small.json"), {}, elsewhere, lines).collect(elsewhere)
    before = rows_of(docs, "small")
    plan = plan_of(read(docs / "studies" / "small.json"), {}, here, lines)
    assert "no run of 4 is finished" in (plan.collect(here) or "")
    assert rows_of(docs, "small") == before
    finish(here / "float_seed1", 32, 1, [52.0])
    plan.collect(here)
    first, second = rows_of(docs, "small")
    assert first == before[0]
    assert second["top1"]["last"] == 52.0
    missing = docs / "results" / "none.jsonl"
    plan_of(read(docs / "studies" / "small.json"), {}, tmp_path / "empty", missing).collect(tmp_path / "empty")
    assert not missing.exists()


@pytest.mark.parametrize(
    ("differences", "word"),
    [((1.0, 1.2, 0.9), "supported"), ((-1.0, -1.2, -0.9), "contradicted"), ((1.0, -1.2, 0.9), "not told apart")],
)
def test_a_verdict_needs_three_seeds_and_two_standard_errors(differences: tuple[float, ...], word: str) -> None:
    by: Any = {("with", (None, seed)): {"top1": {"last": 50 + value}} for seed, value in enumerate(differences)}
    by |= {("without", (None, seed)): {"top1": {"last": 50.0}} for seed in range(len(differences))}
    assert verdict(by, "with", "without").startswith(f"{word}, ")
    assert verdict(by, "with", "absent") == "not measured yet"


def test_a_single_domain_is_judged_by_its_test_set() -> None:
    rows = [{"epoch": epoch, "test": {"prec1": value}} for epoch, value in enumerate((80.0, 90.0, 85.0))]
    assert selections(rows) == {"last": 85.0, "test": 90.0}


def test_faults_of_a_study_are_one_line(docs: Path) -> None:
    float_run, crp_run = SMALL["runs"]
    for change, line in (
        ({"runs": [{**float_run, "program": "nowhere"}]}, "program 'nowhere' of float: expected one of"),
        ({"runs": [crp_run, float_run]}, "run 'crp' is named twice, or before what it starts from"),
        ({"runs": [float_run, float_run]}, "run 'float' is named twice"),
        ({"runs": [{**float_run, "flags": {"bitZ": 4}}]}, "--bitZ"),
        ({"claims": [{"says": "x", "with": "y", "without": "float"}]}, "the claim 'x' names a run that is"),
        ({"runs": [{"name": "float"}]}, "expected a study such as docs/studies/digits.json"),
    ):
        assert line in refused("study", write(docs, {**SMALL, "claims": [], **change}), "--dry_run")
    assert "there is no such file" in refused("study", docs / "nowhere.json")
