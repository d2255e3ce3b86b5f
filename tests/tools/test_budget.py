"""A comparison's budget and its paired differences: what every run is given, and what the tables and files say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.options import Options, parse
from tests.tools.test_compare import ACCURACIES, TASK, Comparison, synthetic
from tools.runs import paired, result_tables
from tools.runs.budget import Budget, statement
from tools.runs.comparison import comparison

RUN = ["--demo", "--bitW", "4", "--abitW", "4"]


def given(budget: Budget, *words: str) -> Options:
    """A quantized run of a comparison, as main.py reads it."""
    typed = [*RUN, *words]
    return parse(TASK, [*typed, *budget.flags(TASK, typed, Path("float.pt"))])


def test_milestones_keep_their_place_in_a_longer_run() -> None:
    recipe = given(Budget()).training
    assert (recipe.num_epochs, recipe.lr_decay_steps) == (4, [2, 3])
    longer = given(Budget(20)).training
    assert (longer.num_epochs, longer.lr_decay_steps, longer.schedule) == (20, [10, 15], "steps")
    assert given(Budget(20), "--lr_decay_steps", "[7]").training.lr_decay_steps == [7], "what was typed stays"
    assert given(Budget(20), "--num_epochs", "15").training.lr_decay_steps == [3, 4], "of the typed 15, at 2 and 3"
    cosine = given(Budget(20, "cosine")).training
    assert (cosine.num_epochs, cosine.schedule) == (20, "cosine")


def test_a_teacher_is_the_float_network() -> None:
    assert given(Budget(distill=True)).distillation.distill == "float.pt"
    assert given(Budget()).distillation.distill is None
    assert Budget().settings() == {}
    assert Budget(4, "cosine", True).settings() == {"epochs_per_bit": 4, "schedule": "cosine", "distill": True}


def test_a_later_evaluation_is_asked_for_nothing_that_belongs_to_training(tmp_path: Path) -> None:
    for name in ("float_seed0", "ours_4bit_seed0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text('{"method": "ours"}')
    passed = {"--reestimate": "3", "--distill_weight": "2", "--lr": "0.1"}
    settings: dict[str, Any] = {"chain": False, "demo": True, "passed": passed, "folder": tmp_path, "against": None}
    evaluated = comparison(TASK, ["ours", "lsq"], [4], [0], shift=True, budget=Budget(4, distill=True), **settings)
    words = {one.name: parse(TASK, one.arguments) for one in evaluated.runs}
    assert [name for name, options in words.items() if options.run.test_only] == ["float_seed0", "ours_4bit_seed0"]
    trained = words["lsq_4bit_seed0"]
    assert (trained.training.reestimate, trained.distillation.distill_weight) == (3, 2.0)
    assert trained.distillation.distill == str(tmp_path / "float_seed0" / "checkpoint" / "model_best.pt")


def test_the_statement_is_what_the_runs_record() -> None:
    rows = synthetic(ACCURACIES)
    assert statement(rows) == "Budget: 3 epochs in float, then 3 epochs at each bit-width, learning rate by steps."
    for entry in rows:
        if entry["bits"] < 32:
            entry["protocol"] |= {"epochs": 1, "schedule": "cosine", "teacher": "abc"}
    said = (
        "Budget: 3 epochs in float, then 1 epoch at each bit-width, learning rate by cosine, taught by a float network."
    )
    assert statement(rows) == said
    assert said in result_tables.markdown(rows, ["ours"], [4], 3)


def test_differences_are_paired_by_seed_with_the_standard_error_of_their_mean() -> None:
    rows = synthetic(ACCURACIES)
    found = paired.differences(rows, "lsq", result_tables.last)
    assert found.keys() == {("ours", 4)}, "lsq has no 2 bits, and is not compared with itself"
    assert found["ours", 4].by_seed == pytest.approx({0: 8.0, 1: 2.1})
    assert found["ours", 4].mean == pytest.approx(5.05)
    assert found["ours", 4].standard_error == pytest.approx(np.std([8.0, 2.1], ddof=1) / math.sqrt(2))
    from_float = paired.differences(rows, "float", result_tables.best)
    assert from_float["lsq", 4].by_seed == pytest.approx({0: -10.0, 1: -6.0})
    assert from_float["ours", 2].by_seed == pytest.approx({0: -20.0})
    assert math.isnan(from_float["ours", 2].standard_error)


def test_the_differences_do_not_depend_on_how_seeds_differ() -> None:
    """What pairing is for: a seed that is better for all methods alike changes no difference."""
    rows = synthetic({("ours", 4): [80.0, 81.0, 82.0], ("lsq", 4): [81.0, 82.5, 83.0]})
    before = paired.differences(rows, "lsq", result_tables.best)["ours", 4]
    for entry in rows:
        entry["best"]["top1"] -= 7.0 * entry["seed"]
    after = paired.differences(rows, "lsq", result_tables.best)["ours", 4]
    assert (after.mean, after.standard_error) == pytest.approx((before.mean, before.standard_error))


def test_tables_and_file_of_the_differences(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = synthetic(ACCURACIES)
    rows[3]["reestimated"] = {"batches": 5, "test": {"prec1": 80.0}}
    (tmp_path / "table.md").write_text("# before\n")
    table = paired.write(tmp_path, rows, ["ours", "lsq", "apot"], [4, 2], "float")
    assert (tmp_path / "table.md").read_text() == "# before\n" + table
    assert "## demo top-1 minus that of float, best epoch: points" in table
    assert "| ours | -2.83 ± 0.56 (n = 3) | -20.00 (one seed) |" in table
    assert "| apot | – | – |" in table
    content = json.loads((tmp_path / "differences.json").read_text())
    assert content["against"] == "float"
    one = next(e for e in content["differences"] if (e["what"], e["method"], e["bits"]) == ("best epoch", "ours", 2))
    assert one == {**one, "mean": -20.0, "standard_error": None, "by_seed": {"0": -20.0}}
    assert "statistics estimated anew" not in table, "the float networks have none to compare with"
    said = result_tables.markdown(rows, ["ours"], [4], 3)
    assert "last epoch, statistics estimated anew from 5 training batches" in said


def test_a_comparison_with_a_teacher_states_its_budget_and_its_differences(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path)
    flags = {"methods": "ours,lsq", "epochs_per_bit": 2, "schedule": "cosine", "distill": True, "reestimate": 1}
    assert comparison.run(**flags, against="lsq", distill_weight=0.5) == 0, comparison.errors
    out = comparison.out
    teacher = out / "float_seed0" / "checkpoint" / "model_best.pt"
    for name in ("ours", "lsq"):
        config = json.loads((out / f"{name}_8bit_seed0" / "config.json").read_text())
        assert config["teacher"]
        assert config["options"]["distill"] == str(teacher)
        assert (config["options"]["distill_weight"], config["options"]["num_epochs"]) == (0.5, 2)
    assert json.loads((out / "float_seed0" / "summary.json").read_text())["training"]["teacher"] == ""
    budget = "Budget: 1 epoch in float, then 2 epochs at each bit-width, learning rate by cosine, taught by a float"
    assert budget in comparison.said
    assert "demo top-1 minus that of lsq, last epoch, statistics estimated anew" in comparison.said
    rows = {row["cell"]: row for row in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    (one,) = [
        entry
        for entry in json.loads((out / "differences.json").read_text())["differences"]
        if entry["what"] == "last epoch"
    ]
    assert one["mean"] == rows["ours_8bit_seed0"]["last"]["top1"] - rows["lsq_8bit_seed0"]["last"]["top1"]
    assert comparison.run(**flags, distill_weight=1) == 2
    assert "holds runs with other settings" in comparison.errors
    assert comparison.run(methods="ours", against="lsq") == 2
    assert "--against lsq: expected one of float, ours" in comparison.errors
