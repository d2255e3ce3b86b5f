"""tools/criteria.py: how criteria without labels rank the epochs of jobs."""

import json
from pathlib import Path

from tests.tools.entry import refused, type_in


def job(folder: Path, accuracies: list[float]) -> Path:
    """Its entropy rises with the accuracy, im falls with it, snd is constant."""
    folder.mkdir()
    rows = [
        {
            "epoch": epoch,
            "target": {"prec1": value, "prec5": 100.0, "entropy": value**3, "im": -value, "snd": 1.0},
            "source": {"prec1": 90.0 + value / 100, "prec5": 100.0},
        }
        for epoch, value in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_criterion_that_orders_epochs_as_accuracy_does_has_one_and_the_reverse_minus_one(tmp_path: Path) -> None:
    jobs = [job(tmp_path / "a", [10.0, 30.0, 20.0]), job(tmp_path / "b", [1.0, 2.0, 3.0, 4.0])]
    status, out, errors = type_in("criteria", *jobs, "--out", tmp_path / "rows.jsonl")
    assert status == 0, errors
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        {"job": name, "epochs": epochs, "entropy": 1.0, "im": -1.0, "snd": 0.0, "source accuracy": 1.0}
        for name, epochs in (("a", 3), ("b", 4))
    ]
    assert out.splitlines()[2:] == [
        "| a | 3 | 1.00 | -1.00 | 0.00 | 1.00 |",
        "| b | 4 | 1.00 | -1.00 | 0.00 | 1.00 |",
        "| mean | | 1.00 | -1.00 | 0.00 | 1.00 |",
    ]


def test_a_job_of_two_epochs_is_refused(tmp_path: Path) -> None:
    assert "2 epochs with label-free criteria" in refused("criteria", job(tmp_path / "a", [1.0, 2.0]))
