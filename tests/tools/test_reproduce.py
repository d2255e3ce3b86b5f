"""Rows of the README's tables: what is run, in which order, what is kept of it, and the table that comes out."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import recipes
from common.config.options import parse
from common.config.tasks import Task
from common.data.demo import cifar10
from common.data.locate import REPOSITORY
from common.errors import UserError
from tests.conftest import refusal, run
from tests.tools.entry import refused, type_in, words_of
from tools.runs import disk
from tools.runs.anchors import ANCHORS
from tools.runs.plan import Planned
from tools.runs.programs import programs
from tools.runs.row_budget import SHORT
from tools.runs.table_rows import label, select
from tools.runs.table_runs import runs_of

TASKS = {str(task.folder / "main.py"): task for tasks in programs().values() for task in tasks}


def dry(**flags: Any) -> list[tuple[Task, Any]]:
    """The tasks and parsed options of the commands that --dry_run prints."""
    status, said, errors = type_in("reproduce", *words_of(dry_run=True, **flags))
    assert status == 0, errors
    about, *lines = said.splitlines()
    assert about.startswith("# disk: ")
    commands = [shlex.split(line) for line in lines]
    assert all(python == "python" for python, *_ in commands)
    tasks = [TASKS[str(Path(program).resolve())] for _, program, *_ in commands]
    return [(task, parse(task, words[2:])) for task, words in zip(tasks, commands, strict=True)]


def test_every_row_of_every_table_is_run_after_what_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = dry(demo=True, num_epochs=1, img_size=32)
    planned = {(task.name, options.pair, options.quantization.bits) for task, options in found}
    rows = [row for table in recipes.TABLES.values() for row in table]
    assert planned == {(row.task, row.pair, bits) for row in rows for bits in (row.bits, 32)}
    assert len(planned) == len(found), "each once"
    jobs: dict[str, int] = {}
    for task, options in found:
        row = recipes.find_row(task.name, options.quantization.bits, options.pair)
        assert row is not None
        assert (options.data.demo, options.training.num_epochs, options.run.resume) == (True, 1, "")
        if options.quantization.bits != 32:
            assert options.quantization.grad_approx == row.flags["grad_approx"]
            assert task.crp == row.crp
            source = str(Path(options.start.source_dir, options.start.source_file).parents[1])
            assert jobs[source] == row.pretrained_bits, "planned before, at the table's width"
        assert options.run.job_dir not in jobs
        jobs[options.run.job_dir] = options.quantization.bits
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_rows_and_bits_as_the_readme_calls_them() -> None:
    chosen = select(["dann_office", "dsan_office"], ["A-W", "D->W", "webcam-dslr"], [8, 4])
    assert [(label(row), row.bits) for row in chosen[:6]] == [
        (name, bits) for name in ("A->W", "D->W", "W->D") for bits in (8, 4)
    ]
    assert len(chosen) == 12
    assert [row.task for row in select(list(recipes.TABLES), ["resnet-20"], [])] == ["resnet20"] * 4
    chain = runs_of(select(["densenet40"], [], [2]))
    assert [run.name for run in chain] == ["dense_32bit", *(f"dense_{bits}bit_daq_grad" for bits in (8, 4, 3, 2))]
    assert [run.name for run in runs_of(select(["dann_office"], ["D-A"], [32]))] == ["da_32bit"]


def test_the_ablation_adds_a_part_at_a_time_from_the_same_float_network() -> None:
    office = runs_of(select(["dsan_office"], ["A-W"], [4]), ablation=True)
    assert [run.name for run in office] == [
        *("aw_32bit", "aw_4bit_daq", "aw_4bit_daq_grad", "aw_4bit_daq_grad_crp"),
    ]
    assert [run.task.crp for run in office] == [False, False, False, True]
    assert {run.source for run in office[1:]} == {office[0]}
    assert ["ste" in run.flags() for run in office[1:]] == [True, False, False]
    cifar = runs_of(select(["resnet20"], [], [4]), ablation=True)
    assert [run.name for run in cifar[1:3]] == ["res20_8bit_daq", "res20_4bit_daq"], "a chain of its own"
    assert not any("crp" in run.parts for run in cifar)
    plain = runs_of(select(["dann_office"], ["A-W"], [4]), crp=False)
    assert [run.name for run in plain] == ["aw_32bit", "aw_4bit_daq_grad"]


def test_a_flag_goes_to_the_runs_that_have_it() -> None:
    found = dry(task="resnet20,dsan_office", rows="ResNet-20,A-W", bits=8, mu=0.7, param=0.9, lr=0.5)
    assert len(found) == 4
    for task, options in found:
        flat = options.flat()
        assert flat["lr"] == 0.5
        assert flat.get("param") == (0.9 if task.objective == "dsan" else None)
        assert flat.get("mu") == (0.7 if task.crp else None)


def test_a_budget_is_spent_by_its_task_alone_and_typed_flags_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "week.json").write_text('{"dann_digits": {"num_epochs": 6, "lr": 0.01}}')
    chosen = {"task": "dann_digits,resnet20", "rows": "MNIST-MNISTM,ResNet-20", "bits": 4, "demo": True}
    chosen |= {"budget": "week.json"}
    found = {task.name: options for task, options in dry(**chosen, momentum=0.5)}
    assert (found["dann_digits"].training.num_epochs, found["dann_digits"].training.lr) == (6, 0.01)
    assert found["resnet20"].training.num_epochs == recipes.DEMO_QUANTIZED["resnet20"]["num_epochs"]
    assert found["dann_digits"].training.momentum == 0.5
    assert "dann_digits_demo_week" in str(found["dann_digits"].run.job_dir)
    typed = {task.name: options for task, options in dry(**chosen, num_epochs=3)}
    assert typed["dann_digits"].training.num_epochs == 3


def test_the_short_budget_has_fewer_epochs_than_any_row_of_the_tables() -> None:
    assert SHORT.keys() == recipes.TABLES.keys()
    for name, flags in SHORT.items():
        assert all(flags["num_epochs"] < row.flags["num_epochs"] for row in recipes.TABLES[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"resnet18": {}}', "'resnet18': expected flags of resnet20, resnet56"),
        ('{"resnet20": {"mu": 1}}', "resnet20 has no flag 'mu'"),
        ('{"resnet20": 6}', "'resnet20': expected flags of"),
        ("6", "not a complete JSON file"),
    ],
)
def test_a_wrong_budget_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(content)
    assert message in refused("reproduce", "--budget", tmp_path / "b.json", "--out", tmp_path / "out")
    assert "there is no such file; expected short" in refused("reproduce", "--budget", tmp_path / "long")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "resnet18"}, "--task: expected one of all, resnet20,"),
        ({"task": "dann_office", "rows": "A-X"}, "--rows A-X: expected some of A-W, D-W,"),
        ({"task": "resnet20", "bits": 5}, "--bits 5: expected some of 32, 8, 4, 3, 2"),
        ({"task": "resnet20", "mu": 1}, "unknown flag --mu"),
        ({"num_epoch": 1}, r"unknown flag --num_epoch; did you mean --num_epochs\?"),
        ({"grad_approx": "ste"}, "--grad_approx: this program sets it for every run"),
        ({"lr": "fast"}, "--lr: expected a number above 0 and up to 1e.30, not 'fast'"),
        ({"demo": True, "fetched": True}, "--fetched: the published files are of the real data"),
        (
            {"task": "resnet20", "fetched": True},
            "res20_32bit/model_best.pt was not found; .*fetch_pretrained.py download",
        ),
    ],
)
def test_wrong_flags_get_one_clear_line(flags: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused("reproduce", *words_of(out=tmp_path / "out", **flags)))
    assert not (tmp_path / "out").exists()


def test_a_published_file_takes_the_place_of_the_float_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pretrained" / "ours" / "res20_32bit" / "model_best.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    first, second = runs_of(select(["resnet20"], [], [4]), fetched=True)
    assert (first.bits, first.file, first.source) == (8, file, None)
    assert (second.file, second.source) == (None, first)


def test_no_figure_is_cited_for_a_row_that_does_not_exist() -> None:
    rows = {(row.task, label(row)) for table in recipes.TABLES.values() for row in table}
    assert {(anchor.task, anchor.row) for anchor in ANCHORS} <= rows
    assert recipes.TABLES.keys() == programs().keys(), "each table has its programs"


class Table:
    """The 8-bit row of ResNet-20 on very small demo data."""

    def __init__(self, folder: Path) -> None:
        self.data, self.out = folder / "data", folder / "results"
        self.jobs = self.out / "resnet20_demo"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cifar10, "TRAIN_IMAGES", 100)
            patch.setattr(cifar10, "TEST_IMAGES", 50)
            cifar10.write(self.data / "demo" / "cifar10")

    def run(self, **flags: Any) -> int:
        """The exit status; what was said is in ``said`` and ``errors``."""
        given = {"task": "resnet20", "bits": 8, "demo": True, "num_epochs": 1, "out": self.out, "data_dir": self.data}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            status, self.said, self.errors = type_in("reproduce", *words_of(**given | flags))
        return status


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    table = Table(tmp_path_factory.mktemp("table"))
    assert table.run() == 0, table.errors
    return table


def test_the_table_is_the_readmes_with_results_and_sources(table: Table) -> None:
    text = (table.jobs / "table.md").read_text()
    assert text.startswith("# ResNet-20 on CIFAR-10: demo data, not the benchmark")
    assert (
        "| Model | Bit-width | Pretrained Bit-width | DAQ | Gradient Approx. | CRP | demo top-1 (%), last epoch |"
        in text
    )
    entries = [json.loads(line) for line in (table.jobs / "results.jsonl").read_text().splitlines()]
    assert [entry["bits"] for entry in entries] == [32, 8]
    shown = f"{entries[1]['last']['top1']:.2f} (epoch 1)"
    assert f"| ResNet-20 | 8 | 32 | V | V |  | {shown} | {shown} |" in text
    assert "APoT 92.96 [1]" in text
    assert "[1] README of the APoT repository" in text


def test_a_table_bears_its_budget_and_has_a_folder_of_its_own(table: Table) -> None:
    (table.out / "tiny.json").write_text('{"resnet20": {"num_epochs": 1, "train_batch_size": 50}}')
    assert table.run(budget=table.out / "tiny.json", bits=32) == 0, table.errors
    text = (table.out / "resnet20_demo_tiny" / "table.md").read_text()
    assert ": demo data, not the benchmark: budget tiny, 1 epoch where the paper has 300\n" in text
    assert "budget" not in (table.jobs / "table.md").read_text()


def test_a_finished_row_keeps_its_best_weights_alone_as_foretold(table: Table) -> None:
    files = {path.name: path for path in (table.jobs / "res20_8bit_daq_grad" / "checkpoint").iterdir()}
    assert set(files) == {"model_best.pt"}
    content = torch.load(files["model_best.pt"], weights_only=True)
    assert not content.keys() & {"optimizer_t", "scheduler_t", "random"}
    run8 = runs_of(select(["resnet20"], [], [8]))[1]
    planned = Planned(run8.name, run8.task, table.jobs, run8.arguments(table.jobs, {}))
    options = parse(planned.task, planned.arguments)
    (weights, momentum) = disk.network_bytes(options)
    assert weights == pytest.approx(files["model_best.pt"].stat().st_size, rel=0.1)
    assert disk.needed({planned: options}, 1) == (weights, 3 * (weights + momentum))
    assert disk.needed({planned: options.replaced(reestimate=5)}, 1)[0] == 2 * weights, "model_reestimated.pt stays too"
    with pytest.raises(UserError, match=r"are needed and .* are free"):
        disk.check_free(table.out, 10**18)


def test_what_is_finished_is_not_run_again(table: Table) -> None:
    text = (table.jobs / "table.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in table.jobs.glob("res20*/**/*")}
    assert table.run() == 0
    assert {path: path.stat().st_mtime_ns for path in table.jobs.glob("res20*/**/*")} == before
    assert (table.jobs / "table.md").read_text() == text
    assert "started" not in table.errors
    assert table.run(dry_run=True) == 0
    assert table.said.splitlines()[1:] == ["# every row is finished"]
    assert table.run(num_epochs=2) == 2
    assert "holds runs with other settings" in table.errors


def test_the_task_itself_knows_that_a_trimmed_run_is_finished(table: Table) -> None:
    job = table.jobs / "res20_8bit_daq_grad"
    words = ["--demo", "--bitW", 8, "--data_dir", table.data, "--num_epochs", 1, "--job_dir", job]
    metrics = (job / "metrics.jsonl").read_bytes()
    for further in ([], ["--resume"]):
        line = refusal("single_domain/resnet20", *words, *further)
        assert "holds a finished run, of which the best weights alone were kept: --test_only evaluates it" in line
    assert (job / "metrics.jsonl").read_bytes() == metrics
    assert run("single_domain/resnet20", *words, "--test_only").returncode == 0
    tested = json.loads((job / "test.json").read_text())["test"]["prec1"]
    assert tested == pytest.approx(json.loads((job / "summary.json").read_text())["best"]["test_prec1"])


def test_tox_has_an_environment_for_every_program() -> None:
    text = (REPOSITORY / "tox.ini").read_text()
    for name, tasks in programs().items():
        for task in tasks:
            assert name in text
            assert not task.cross or f"{name}-{task.folder.name}: cross_domain/{name}/{task.folder.name}" in text
