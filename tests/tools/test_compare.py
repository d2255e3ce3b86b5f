"""The comparison: what is run, what is kept, what its tables and picture say, and how it refuses."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.options import parse
from common.config.tasks import Task
from common.data.demo import cifar10
from common.quantizers import METHODS
from tests.conftest import REPOSITORY
from tests.tools.entry import refused, type_in, words_of
from tools import compare
from tools.runs import recorded, result_tables
from tools.runs.comparison import VARIANTS, Cell, cells_of, defines

TASK = Task("resnet20", Path("."), "resnet20_quant", stem="res20")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Comparison:
    """A comparison of two methods at 8 bits on very small demo data, run by and by."""

    def __init__(self, folder: Path) -> None:
        self.data, self.out = folder / "data", folder / "results"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cifar10, "TRAIN_IMAGES", 100)
            patch.setattr(cifar10, "TEST_IMAGES", 50)
            cifar10.write(self.data / "demo" / "cifar10")

    def run(self, **flags: Any) -> int:
        """The exit status; what was said is in ``said`` and ``errors``."""
        given = {"bits": 8, "seeds": 1, "demo": True, "num_epochs": 1, "out": self.out, "data_dir": self.data}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            status, self.said, self.errors = type_in("compare", *words_of(**given | flags))
        return status

    def modified(self, name: str) -> dict[str, int]:
        """When each file of a cell was last written, the lock apart."""
        files = [path for path in (self.out / name).rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(self.out)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """After a first call in which lsq failed."""
    comparison = Comparison(tmp_path_factory.mktemp("comparison"))
    comparison.out.mkdir()
    (comparison.out / "lsq_8bit_seed0").write_text("in the way")
    comparison.status = comparison.run(methods="lsq,ours,apot", workers=2)
    (comparison.out / "lsq_8bit_seed0").unlink()
    return comparison


def test_a_failing_cell_stops_no_other_and_gives_status_1(started: Comparison) -> None:
    assert started.status == 1
    assert [row["cell"] for row in lines(started.out / "results.jsonl")] == ["float_seed0", "ours_8bit_seed0"]
    log = (started.out / "logs" / "lsq_8bit_seed0.log").read_text()
    assert "lsq_8bit_seed0: a file; expected a folder" in log.splitlines()[-1]


def test_every_cell_starts_from_the_float_network_of_its_seed(started: Comparison) -> None:
    log = (started.out / "ours_8bit_seed0" / "logger.log").read_text()
    assert f"loaded 128 tensors from {started.out}/float_seed0/checkpoint/model_best.pt" in log


def test_the_table_names_the_data_and_has_a_dash_where_nothing_is_defined(started: Comparison) -> None:
    table = (started.out / "table.md").read_text()
    assert table.startswith("# resnet20: demo data, not the CIFAR-10 benchmark")
    headings = [line for line in table.splitlines() if line.startswith("## ")]
    assert len(headings) == 2
    assert all(line.startswith("## demo top-1 (%)") for line in headings)
    assert table.count("| apot | – |") == 2, "apot defines no 8 bits"
    ours = lines(started.out / "results.jsonl")[1]
    effective = ours["effective"]
    shown = f"{ours['best']['top1']:.2f} ({effective['weight_bits']:.1f}/"
    assert shown in table, "effective bits stand beside the accuracy"
    assert 7 < effective["weight_bits"] <= 8


def test_the_picture_is_a_picture(started: Comparison) -> None:
    content = (started.out / "accuracy.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000


@pytest.fixture(scope="module")
def continued(started: Comparison) -> Comparison:
    """After a second call, with --shift, before which "ours" had been interrupted when it was nearly finished."""
    (started.out / "ours_8bit_seed0" / "summary.json").unlink()
    started.before = started.modified("float_seed0")
    started.status = started.run(methods="ours", shift=True)
    return started


def test_an_interrupted_cell_resumes(continued: Comparison) -> None:
    assert continued.status == 0
    log = (continued.out / "ours_8bit_seed0" / "logger.log").read_text()
    assert "resuming from" in log
    assert "ours_8bit_seed0/checkpoint/last.pt at epoch 1" in log
    assert log.count("Epoch[0]") == 1, "the finished epoch was trained once"


def test_a_finished_cell_is_evaluated_under_shift_without_being_trained_again(continued: Comparison) -> None:
    after = continued.modified("float_seed0")
    new = {Path(name).name for name in after.keys() - continued.before.keys()}
    assert "test.json" in new
    for name in ("checkpoint/last.pt", "checkpoint/model_best.pt", "summary.json", "config.json", "metrics.jsonl"):
        assert after[f"float_seed0/{name}"] == continued.before[f"float_seed0/{name}"], name


def test_accuracies_under_shift_reach_the_results_and_the_table(continued: Comparison) -> None:
    for row in lines(continued.out / "results.jsonl"):
        shift = row["shift"]
        kinds = ["noise", "blur", "contrast", "brightness"]
        assert all(len(shift[kind]) == 3 for kind in kinds)
        assert shift["images"] == 50
        assert shift["mean"] == pytest.approx(np.mean([shift[kind] for kind in kinds]))
    table = (continued.out / "table.md").read_text()
    assert "mean over all corruptions of 50 test images" in table
    assert "| clean | noise | blur | contrast | brightness | all corruptions |" in table


def test_what_is_finished_is_not_run_again(continued: Comparison) -> None:
    names = ("float_seed0", "ours_8bit_seed0")
    before = [continued.modified(name) for name in names]
    results = (continued.out / "results.jsonl").read_text()
    assert continued.run(methods="ours", shift=True) == 0
    assert [continued.modified(name) for name in names] == before
    assert (continued.out / "results.jsonl").read_text() == results
    assert "started" not in continued.errors
    assert continued.run(methods="ours", shift=True, dry_run=True) == 0
    assert continued.said == "# every cell is finished\n"


def test_other_settings_do_not_mix_with_finished_cells(continued: Comparison) -> None:
    assert continued.run(methods="ours", num_epochs="01", shift=True) == 0, "written in another way"
    assert continued.run(methods="ours", num_epochs=2) == 2
    assert re.search(r"holds runs with other settings .*--num_epochs 1.*; choose another --out\n$", continued.errors)


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("settings.json", '{"task": ', "settings.json: not a complete JSON file"),
        ("settings.json", "[1]", "settings.json: not a complete JSON file"),
        ("results.jsonl", "{}\n{", "results.jsonl: line 2 is damaged"),
        ("float_seed0/summary.json", '{"task": "resnet20"}', "results.jsonl or a run's summary.json is damaged"),
    ],
)
def test_damaged_files_of_an_earlier_comparison_are_one_line(
    file: str, content: str, line: str, continued: Comparison, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    shutil.copytree(continued.out, out)
    (out / file).write_text(content)
    assert continued.run(methods="ours", out=out) == 2
    assert line in continued.errors
    assert (out / file).read_text() == content


def test_a_later_evaluation_counts_only_for_the_same_network(tmp_path: Path) -> None:
    summary = {"best": {"test_prec1": 50.0}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "test.json").write_text(json.dumps({"test": {"prec1": 60.0}, "shift": {"mean": 1}}))
    assert recorded.read_summary(tmp_path) == summary
    (tmp_path / "test.json").write_text(json.dumps({"test": {"prec1": 50.0}, "shift": {"mean": 1}}))
    assert recorded.read_summary(tmp_path) == {**summary, "shift": {"mean": 1}}
    (tmp_path / "summary.json").write_text("{")
    assert recorded.read_summary(tmp_path) is None, "half a file is not a finished run"


def synthetic(accuracies: dict[tuple[str, int], list[float]], demo: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "cell": f"{method}_{bits}_{seed}",
            "task": "resnet20",
            "method": method,
            "bits": bits,
            "seed": seed,
            "demo": demo,
            "best": {"epoch": 1, "top1": accuracy},
            "last": {"epoch": 2, "top1": accuracy - 1},
            "effective": {"weight_bits": 2.0, "input_bits": 3.0, "uncounted": int(method == "lsq")},
            "shift": {"noise": [accuracy - 10] * 3, "mean": accuracy - 10, "images": 2000},
            "protocol": {"selected_by": "test", "epochs": 3, "source": None if bits == 32 else f"float_seed{seed}"},
        }
        for (method, bits), values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


ACCURACIES = {
    ("float", 32): [90.0, 91.0, 92.5],
    ("ours", 4): [88.0, 87.1, 89.9],
    ("lsq", 4): [80.0, 85.0],
    ("ours", 2): [70.0],
}


def test_statistics_are_numpys() -> None:
    found = result_tables.statistics(synthetic(ACCURACIES), result_tables.last)
    assert found.keys() == ACCURACIES.keys()
    for key, values in ACCURACIES.items():
        mean, deviation, count = found[key]
        assert (mean, count) == (pytest.approx(np.mean(values) - 1), len(values))
        if count > 1:
            assert deviation == pytest.approx(np.std(values, ddof=1))


def test_the_table_has_mean_deviation_seeds_and_effective_bits() -> None:
    table = result_tables.markdown(synthetic(ACCURACIES), ["ours", "lsq", "apot"], [4, 2], seeds=3)
    best, last, shifted, by_kind = table.split("\n## ")[1:]
    assert best.startswith("demo top-1 (%), best epoch; float: 91.17 ± 1.26")
    assert "| ours | 88.33 ± 1.43 (2.0/3.0) | 70.00 [1 of 3 seeds] (2.0/3.0) |" in best
    assert "| lsq | 82.50 ± 3.54 [2 of 3 seeds] (2.0/≥3.0) | – |" in best
    assert "| apot | – | – |" in best
    assert "| ours | 87.33 ± 1.43 (2.0/3.0) |" in last
    assert "| ours | 78.33 ± 1.43 (2.0/3.0) |" in shifted
    assert "| ours | 4 | 88.3 | 78.3 | 78.3 |" in by_kind
    assert "demo" not in result_tables.markdown(synthetic(ACCURACIES, demo=False), ["ours"], [4], seeds=3)


@pytest.mark.parametrize(("ahead", "said"), [(0.9, False), (1.1, True)])
def test_a_float_network_that_its_quantized_ones_leave_behind_is_no_reference(ahead: float, said: bool) -> None:
    rows = synthetic({("float", 32): [60.0, 62.0], ("ours", 4): [61.0 + ahead] * 2, ("lsq", 2): [50.0, 70.0]})
    table = result_tables.markdown(rows, ["ours", "lsq"], [4, 2], seeds=2)
    assert (f"trained too little to be a reference: ours at 4 bits is {ahead:.2f} points ahead" in table) == said
    alone = [entry for entry in rows if entry["method"] != "float"]
    assert "too little" not in result_tables.markdown(alone, ["ours", "lsq"], [4, 2], seeds=2)


def test_effective_bits_leave_out_the_image_and_bound_what_was_not_counted(tmp_path: Path) -> None:
    layers = [(4, 700), (16, 8), (4, None)]
    summary = {
        "task": "resnet20",
        "seed": 0,
        "demo": True,
        "selected_by": "test",
        "best": {"epoch": 0, "test_prec1": 50.0},
        "last": {"epoch": 0, "test_prec1": 50.0},
        "layers": [{"layer": str(i), "weight_levels": w, "input_levels": x} for i, (w, x) in enumerate(layers)],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    row = recorded.result(tmp_path, "ours", 4, "float_seed0")
    assert row is not None
    expected = {
        "weight_bits": pytest.approx(8 / 3),
        "input_bits": (3 + 12) / 2,
        "uncounted": 1,
        "most_weight_levels": 16,
    }
    assert row["effective"] == expected
    one_bit = Cell(tmp_path.name, "bwnf", 4, 0, "float_seed0").result(tmp_path.parent)
    assert one_bit is not None
    assert one_bit["effective"]["weight_bits"] == 1, "a scale for every filter is no further bit"


def test_results_of_other_cells_stay_and_those_of_the_same_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second, third = synthetic({("ours", 4): [1.0, 2.0, 3.0]})
    recorded.merge(path, [first, second])
    recorded.merge(path, [{**second, "seed": 9}, third])
    assert [row["seed"] for row in lines(path)] == [0, 9, 2]


def test_all_methods_and_variants_at_the_widths_that_they_define() -> None:
    cells = cells_of("resnet20", [*METHODS, *VARIANTS], [8, 4, 1], [0, 1], chain=False)
    planned = {(c.method, c.bits, c.seed) for c in cells}
    for name in (*METHODS, *VARIANTS):
        for bits in (8, 4, 1):
            assert ((name, bits, 1) in planned) is defines(name, bits)
    assert not defines("apot", 8)
    assert not defines("lsq", 1)
    assert {c.source for c in cells if c.bits < 32} == {"float_seed0", "float_seed1"}
    assert len({c.name for c in cells}) == len(cells)


def test_the_chain_is_the_readmes_and_skips_what_a_method_does_not_define() -> None:
    cells = {c.name: c.source for c in cells_of("resnet20", ["ours", "apot"], [2], [0], chain=True)}
    assert cells == {
        "float_seed0": None,
        "ours_8bit_chain_seed0": "float_seed0",
        "ours_4bit_chain_seed0": "ours_8bit_chain_seed0",
        "ours_3bit_chain_seed0": "ours_4bit_chain_seed0",
        "ours_2bit_chain_seed0": "ours_3bit_chain_seed0",
        "apot_4bit_chain_seed0": "float_seed0",
        "apot_3bit_chain_seed0": "apot_4bit_chain_seed0",
        "apot_2bit_chain_seed0": "apot_3bit_chain_seed0",
    }
    order = list(cells)
    assert all(source is None or order.index(source) < order.index(name) for name, source in cells.items())


def test_dry_run_prints_commands_ready_to_be_typed(tmp_path: Path) -> None:
    words = ["--methods", "ours-ste,bwn", "--bits", "4,2", "--seeds", "7,8", "--demo", "--shift", "--lr", "0.02"]
    program = REPOSITORY / "tools" / "compare.py"
    result = subprocess.run(
        [sys.executable, str(program), *words, "--lr_decay_steps", "[3, 5]", "--dry_run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    assert len(commands) == 2 * (1 + 4)
    for python, program, *flags in commands:
        assert python == "python"
        assert (tmp_path / program).resolve() == REPOSITORY / "single_domain" / "resnet20" / "main.py"
        options = parse(TASK, flags)  # the program takes them
        assert (options.training.lr, options.training.lr_decay_steps) == (0.02, [3, 5])
        assert (options.data.demo, options.data.shift) == (True, "own")
        assert options.run.resume is not None
        assert options.run.job_dir.startswith(str(Path("results", "compare", "resnet20_demo")))
    ablated = [flags for flags in commands if "ste" in flags]
    assert len(ablated) == 4
    assert all(parse(TASK, flags[2:]).quantization.method == "ours" for flags in ablated)
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task": "resnet18"}, "--task: expected one of densenet40, resnet20, resnet56, not 'resnet18'"),
        ({"methods": "lsqq"}, "--methods: expected one of all, ours,"),
        ({"bits": 32}, "--bits: expected widths from 1 to 31"),
        ({"bits": "4,x"}, "--bits: expected widths from 1 to 31, not 'x'"),
        ({"methods": "apot", "bits": 8}, "--methods apot --bits 8: none of them is defined"),
        ({"seeds": 0}, "--seeds: expected how many, .* not '0'"),
        ({"seeds": "one"}, "--seeds: expected how many"),
        ({"seeds": "1,,2"}, "--seeds: expected how many"),
        ({"workers": 0}, "--workers: expected a whole number from 1 to 1000, not '0'"),
        ({"launcher": "ssh"}, "--launcher: expected local or slurm, not 'ssh'"),
        ({"launcher": "slurm", "slurm": "gpu"}, "--slurm: expected name=value"),
        ({"demo": "maybe"}, "--demo: expected true or false"),
        ({"num_epoch": 3}, r"unknown flag --num_epoch; did you mean --num_epochs\?"),
        ({"job_dir": "x"}, "--job_dir: this program sets it for every run"),
        ({"lr": "fast"}, "--lr: expected a number above 0 and up to 1e.30, not 'fast'"),
    ],
)
def test_wrong_flags_get_one_clear_line(
    flags: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refused("compare", *words_of(out="out", **flags)))
    assert not list(tmp_path.iterdir())


def test_seeds_are_how_many_or_themselves() -> None:
    assert compare.seed_list("2") == (0, 1)
    assert compare.seed_list("8,4") == compare.seed_list("[8, 4]") == compare.seed_list("8,4,8") == (8, 4)
    assert compare.seed_list("7,") == (7,)
