"""Flags: every spelling of the published commands, where defaults come from, and what is refused."""

import json
from pathlib import Path

import pytest

from common.config.options import parse, recorded
from common.config.tasks import Task
from common.errors import UserError
from tests.conftest import readme_command

RESNET20 = Task(
    "resnet20", "single", Path("."), "resnet20_quant", "res20", defaults={"bitW": 2, "lr_decay_steps": [80, 150]}
)
OFFICE = Task(
    "dann_office", "dann", Path("."), "resnet50_dann", crp=True, defaults={"src_data": "dslr", "tgt_data": "webcam"}
)
DIGITS = Task(
    "dann_digits",
    "digits",
    Path("."),
    "MNISTmodel_quant",
    defaults={"src_data": "mnist", "tgt_data": "mnistm", "bitW": 1},
)
DSAN = Task("dsan_office", "dsan", Path("."), "resnet50_dsan", defaults={"src_data": "amazon", "tgt_data": "webcam"})

README_SINGLE = readme_command('--source_file "res20_32bit')
README_OFFICE = readme_command('--source_file "dslr_webcam')


def test_readme_commands_are_read_as_typed() -> None:
    single = parse(RESNET20, README_SINGLE)
    assert (single.lr_decay_steps, single.num_epochs, single.model, single.lr) == (
        [80, 120],
        300,
        "resnet20_quant",
        0.04,
    )
    office = parse(OFFICE, README_OFFICE)
    assert (office.lr_decay_steps, office.train_split, office.model, office.bits) == (
        [80, 120],
        True,
        "resnet50_dann",
        8,
    )
    assert "--arch is accepted but has no use" in single.notes


@pytest.mark.parametrize(
    "words", [["[80,", "120]"], ["[80, 120]"], ["80", "120"], ["80,120"], ["[120,80]"], ["(80,", "120)"]]
)
def test_decay_steps_in_every_spelling(words: list[str]) -> None:
    assert parse(RESNET20, ["--lr_decay_steps", *words, "--seed", "1"]).lr_decay_steps == [80, 120]


def test_no_decay_steps() -> None:
    assert parse(RESNET20, ["--lr_decay_steps", "[]"]).lr_decay_steps == []


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], True),
        (["True"], True),
        (["yes"], True),
        (["1"], True),
        (["false"], False),
        (["FALSE"], False),
        (["no"], False),
        (["0"], False),
    ],
)
def test_booleans_bare_or_with_a_word(words: list[str], value: bool) -> None:
    assert parse(OFFICE, ["--train_split", *words, "--seed", "3"]).train_split is value


def test_test_batch_size_is_eval_batch_size() -> None:
    assert parse(RESNET20, ["--test_batch_size", "50"]).eval_batch_size == 50


@pytest.mark.parametrize("task", [RESNET20, OFFICE, DIGITS, DSAN])
def test_flags_without_use_are_accepted_everywhere(task: Task) -> None:
    words = [
        "--arch",
        "dann",
        "--mask_step",
        "200",
        "--random",
        "--keep_grad",
        "--lr_decay_step",
        "30",
        "--refine",
        "x",
        "--dataset",
        "cifar10",
    ]
    assert len([note for note in parse(task, words).notes if "no use" in note]) == 7


def test_defaults_come_from_the_tables_row() -> None:
    assert parse(RESNET20, ["--bitW", "8"]).lr == 0.1
    assert parse(RESNET20, ["--bitW", "4"]).lr == 0.04
    assert parse(RESNET20, ["--bitW", "32"]).lr == 0.1, "32 bits take the 8-bit row"
    svhn = parse(DIGITS, ["--src_data", "mnist", "--tgt_data", "svhn", "--bitW", "2"])
    assert (svhn.img_size, svhn.train_batch_size, svhn.lr, svhn.grad_approx) == (32, 100, 0.01, "ste")
    assert parse(OFFICE, ["--src_data", "amazon", "--tgt_data", "webcam", "--bitW", "5"]).eval_batch_size == 28
    assert parse(DSAN, ["--bitW", "8"]).param == 0.3
    assert parse(RESNET20, ["--bitW", "6"]).num_epochs == 200, "no row: the published default"


def test_default_widths_are_the_published_ones_and_follow_each_other() -> None:
    assert [parse(RESNET20, []).bitW, parse(RESNET20, []).abitW] == [2, 2]
    assert parse(RESNET20, ["--bitW", "5"]).abitW == 5
    mixed = parse(RESNET20, ["--bitW", "32", "--abitW", "4"])
    assert (mixed.bitW, mixed.abitW, mixed.bits) == (32, 4, 4)


def test_typed_beats_config_beats_demo_preset_beats_table(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"task": "resnet20", "options": {"lr": 0.5, "num_epochs": 7, "bitW": 3, "abitW": 3}}))
    options = parse(RESNET20, ["--config", str(config), "--num_epochs", "9", "--demo"])
    assert (options.lr, options.num_epochs, options.bitW) == (0.5, 9, 3)
    assert parse(RESNET20, ["--demo", "--bitW", "4"]).num_epochs < 100
    assert "num_epochs" in " ".join(parse(RESNET20, ["--demo", "--bitW", "4"]).notes), "the preset is logged"


def test_a_jobs_own_options_repeat_it(tmp_path: Path) -> None:
    first = parse(RESNET20, README_SINGLE)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"task": "resnet20", "options": recorded(first, RESNET20)}))
    assert recorded(parse(RESNET20, ["--config", str(config)]), RESNET20) | {"config": None} == recorded(
        first, RESNET20
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bitw", "4"], "--bitw; did you mean --bitW"),
        (["--num_epoch", "4"], "did you mean --num_epochs"),
        (["--zzz"], "unknown flag --zzz; --help"),
        (["--num_epochs", "0"], "num_epochs.*1 or more"),
        (["--lr", "nan"], "lr.*above 0"),
        (["--lr", "fast"], "lr.*'fast'"),
        (["--lr_decay_steps", "80", "x"], r"--lr_decay_steps 80 x: expected epochs such as \[80, 120\]"),
        (["--train_split", "maybe"], "train_split.*true or false"),
        (["--config", "nowhere.json"], "nowhere.json: there is no such file"),
    ],
)
def test_wrong_flags_get_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parse(OFFICE, words)
    assert "\n" not in str(raised.value)


def test_config_of_another_task_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"task": "resnet56", "options": {}}))
    with pytest.raises(UserError, match="made by task resnet56"):
        parse(RESNET20, ["--config", str(config)])
    config.write_text("{")
    with pytest.raises(UserError, match="not the config"):
        parse(RESNET20, ["--config", str(config)])
