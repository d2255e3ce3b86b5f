"""Flags: every spelling of the published commands, where defaults come from, and what is refused."""

import json
from pathlib import Path

import pytest

from common.adaptation import OBJECTIVES
from common.config.options import group_classes, parse
from common.config.tasks import Task
from common.errors import UserError
from common.flags import flags_of
from common.quantizers import METHODS
from tests.conftest import readme_command

RESNET20 = Task(
    "resnet20", Path("."), "resnet20_quant", stem="res20", defaults={"bitW": 2, "lr_decay_steps": [80, 150]}
)
PAIR = {"src_data": "dslr", "tgt_data": "webcam"}
OFFICE = Task("dann_office", Path("."), "resnet50_dann", "office", "dann", crp=True, defaults=PAIR)
DIGITS_DEFAULTS = {"src_data": "mnist", "tgt_data": "mnistm", "bitW": 1}
DIGITS = Task("dann_digits", Path("."), "MNISTmodel_quant", "digits", "dann", defaults=DIGITS_DEFAULTS)
AMAZON = {"src_data": "amazon", "tgt_data": "webcam"}
DSAN = Task("dsan_office", Path("."), "resnet50_dsan", "office", "dsan", defaults=AMAZON)

README_SINGLE = readme_command('--source_file "res20_32bit')
README_OFFICE = readme_command('--source_file "dslr_webcam')


def test_readme_commands_are_read_as_typed() -> None:
    single = parse(RESNET20, README_SINGLE)
    assert (single.training.lr_decay_steps, single.training.num_epochs, single.training.lr) == ([80, 120], 300, 0.04)
    assert single.quantization.model == "resnet20_quant"
    office = parse(OFFICE, README_OFFICE)
    assert (office.training.lr_decay_steps, office.data.train_split) == ([80, 120], True)
    assert (office.quantization.model, office.quantization.bits) == ("resnet50_dann", 8)
    assert "--arch is accepted but has no use" in single.notes


@pytest.mark.parametrize(
    "words", [["[80,", "120]"], ["[80, 120]"], ["80", "120"], ["80,120"], ["[120,80]"], ["(80,", "120)"]]
)
def test_decay_steps_in_every_spelling(words: list[str]) -> None:
    assert parse(RESNET20, ["--lr_decay_steps", *words, "--seed", "1"]).training.lr_decay_steps == [80, 120]


def test_no_decay_steps() -> None:
    assert parse(RESNET20, ["--lr_decay_steps", "[]"]).training.lr_decay_steps == []


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
    assert parse(OFFICE, ["--train_split", *words, "--seed", "3"]).data.train_split is value


def test_test_batch_size_is_eval_batch_size() -> None:
    assert parse(RESNET20, ["--test_batch_size", "50"]).training.eval_batch_size == 50


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
    assert len([note for note in parse(task, words).notes if "no use" in note]) == (7 if task.cross else 6)


def test_dataset_is_a_flag_of_single_domain_programs_alone() -> None:
    assert parse(RESNET20, ["--dataset", "cifar100"]).data.dataset == "cifar100"
    assert "--dataset is accepted but has no use" in parse(OFFICE, ["--dataset", "office31"]).notes


def test_defaults_come_from_the_tables_row() -> None:
    assert parse(RESNET20, ["--bitW", "8"]).training.lr == 0.1
    assert parse(RESNET20, ["--bitW", "4"]).training.lr == 0.04
    assert parse(RESNET20, ["--bitW", "32"]).training.lr == 0.1, "32 bits take the 8-bit row"
    svhn = parse(DIGITS, ["--src_data", "mnist", "--tgt_data", "svhn", "--bitW", "2"])
    assert (svhn.data.img_size, svhn.training.train_batch_size, svhn.training.lr) == (32, 100, 0.01)
    assert svhn.quantization.grad_approx == "ste"
    assert parse(OFFICE, ["--src_data", "amazon", "--tgt_data", "webcam", "--bitW", "5"]).training.eval_batch_size == 28
    assert parse(DSAN, ["--bitW", "8"]).objective.param == 0.3
    assert parse(RESNET20, ["--bitW", "6"]).training.num_epochs == 200, "no row: the published default"


def test_default_widths_are_the_published_ones_and_follow_each_other() -> None:
    assert [parse(RESNET20, []).quantization.bitW, parse(RESNET20, []).quantization.abitW] == [2, 2]
    assert parse(RESNET20, ["--bitW", "5"]).quantization.abitW == 5
    mixed = parse(RESNET20, ["--bitW", "32", "--abitW", "4"]).quantization
    assert (mixed.bitW, mixed.abitW, mixed.bits) == (32, 4, 4)


def test_typed_beats_config_beats_demo_preset_beats_table(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"task": "resnet20", "options": {"lr": 0.5, "num_epochs": 7, "bitW": 3, "abitW": 3}}))
    options = parse(RESNET20, ["--config", str(config), "--num_epochs", "9", "--demo"])
    assert (options.training.lr, options.training.num_epochs, options.quantization.bitW) == (0.5, 9, 3)
    assert parse(RESNET20, ["--demo", "--bitW", "4"]).training.num_epochs < 100
    assert "num_epochs" in " ".join(parse(RESNET20, ["--demo", "--bitW", "4"]).notes), "the preset is logged"


def config_file(folder: Path, options: dict, task: str = "resnet20") -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({"task": task, "options": options}).replace('"LONG"', "9" * 5000))
    return str(path)


@pytest.mark.parametrize("task", [RESNET20, OFFICE, DIGITS, DSAN])
def test_a_jobs_own_options_repeat_it(task: Task, tmp_path: Path) -> None:
    first = parse(task, ["--lr", "0.3", "--lr_decay_steps", "3,1", "--bitW", "4", "--abitW", "8", "--gpus", "1"])
    config = config_file(tmp_path, first.flat(), task.name)
    assert parse(task, ["--config", config]).flat() | {"config": None} == first.flat()


def test_a_width_typed_alone_sets_both_whatever_a_configuration_says(tmp_path: Path) -> None:
    config = config_file(tmp_path, {"bitW": 32, "abitW": 32})
    quantization = parse(RESNET20, ["--config", config, "--bitW", "4"]).quantization
    assert (quantization.bitW, quantization.abitW) == (4, 4)
    mixed = parse(RESNET20, ["--config", config_file(tmp_path, {"bitW": 4, "abitW": 8})]).quantization
    assert (mixed.bitW, mixed.abitW) == (4, 8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"lr": "fast"}, "config.json: lr: expected a number above 0 and up to 1e+30, not 'fast'"),
        ({"lr": True}, "config.json: lr: expected a number above 0 and up to 1e+30, not 'True'"),
        ({"lr": [1]}, "config.json: lr: expected a single value"),
        ({"lr": None}, "config.json: lr: expected a single value, not None"),
        ({"lr": float("nan")}, "config.json: lr: expected a number above 0"),
        ({"num_epochs": -1}, "num_epochs: expected a whole number from 1 to 1000000000"),
        ({"num_epochs": 1.5}, "num_epochs: expected a whole number"),
        ({"num_epochs": "LONG"}, "not a complete JSON file"),
        ({"num_epochs": "9" * 5000}, "num_epochs: expected a whole number"),
        ({"lr_decay_steps": 80}, "lr_decay_steps: expected a list, not 80"),
        ({"lr_decay_steps": [{}]}, "lr_decay_steps: expected a list"),
        ({"demo": "perhaps"}, "demo: expected true or false"),
        ({"select": "luck"}, "select: expected one of test, val, last"),
        ({"seed": 2**64}, "seed: expected a whole number from 0"),
        ({"no_such_flag": 1}, "unknown entry 'no_such_flag'"),
    ],
)
def test_a_configuration_is_read_as_if_it_had_been_typed(entry: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        parse(RESNET20, ["--config", config_file(tmp_path, entry)])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapt_images", "16"], "--adapt_images: belongs to --adapt bn, which this run does not have"),
        (["--adapt_prior", "0"], "--adapt_prior: belongs to --adapt bn, which this run does not have"),
        (["--adapt", "none", "--adapt_prior", "8"], "--adapt_prior: belongs to --adapt bn"),
        (["--distill", "f.pt", "--test_only"], "--distill: belongs to training, this run has --test_only"),
        (["--reestimate", "4", "--test_only"], "--reestimate: belongs to training, this run has --test_only"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    for task in (RESNET20, OFFICE, DIGITS, DSAN):
        with pytest.raises(UserError, match=said):
            parse(task, words)
    entry = {"reestimate": 4, "distill": "f.pt", "adapt_images": 16}
    assert parse(RESNET20, ["--config", config_file(tmp_path, entry), "--test_only"]), "what was not typed may idle"


def test_flags_of_another_objective_are_refused_and_those_of_the_chosen_one_read() -> None:
    with pytest.raises(UserError, match="--param belongs to --adaptation dsan, this run has --adaptation dann"):
        parse(OFFICE, ["--param", "0.5"])
    assert parse(OFFICE, ["--adaptation", "dsan", "--param", "0.5"]).objective.param == 0.5
    assert parse(OFFICE, ["--adaptation", "mcc"]).adaptation.epoch_length == "max", "the objective's own default"
    with pytest.raises(UserError, match="contradict"):
        parse(OFFICE, ["--adaptation", "mcc", "--src_only_flag"])
    with pytest.raises(UserError, match="--adaptation nobody: expected one of source_only, dann"):
        parse(OFFICE, ["--adaptation", "nobody"])


def test_no_two_groups_declare_the_same_flag() -> None:
    for task in (RESNET20, OFFICE, DIGITS, DSAN):
        classes = [*group_classes(task).values(), *(m.options for m in METHODS.values())]
        classes += [objective.Options for objective in OBJECTIVES.values()]
        spelled = [
            s for options in dict.fromkeys(classes) for flag in flags_of(options).values() for s in flag.spellings
        ]
        assert len(spelled) == len(set(spelled))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bitw", "4"], "--bitw; did you mean --bitW"),
        (["--num_epoch", "4"], "did you mean --num_epochs"),
        (["--zzz"], "unknown flag --zzz; --help"),
        (["--num_epochs", "0"], "num_epochs.*from 1 to 1000000000"),
        (["--lr", "nan"], "lr.*above 0"),
        (["--lr", "fast"], "lr.*'fast'"),
        (["--lr_decay_steps", "80", "x"], r"--lr_decay_steps: expected epochs such as \[80, 120\].*'80 x'"),
        (["--train_split", "maybe"], "train_split.*true or false"),
        (["--config", "nowhere.json"], "nowhere.json: there is no such file"),
    ],
)
def test_wrong_flags_get_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parse(OFFICE, words)
    assert "\n" not in str(raised.value)


def test_help_lists_the_methods_with_the_bits_that_they_define(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(RESNET20, ["--help"])
    rows = [line.split() for line in capsys.readouterr().out.split("32 is float:")[1].splitlines()[2:]]
    assert [row[0] for row in rows] == list(METHODS)
    for name, row in zip(METHODS, rows, strict=True):
        method = METHODS[name]
        assert row[1:4] == f"{min(method.weight_bits)} to {max(method.weight_bits)}".split()
        assert row[-3:] == f"{min(method.act_bits)} to {max(method.act_bits)}".split()


def test_config_of_another_task_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"task": "resnet56", "options": {}}))
    with pytest.raises(UserError, match="made by task 'resnet56'"):
        parse(RESNET20, ["--config", str(config)])
    config.write_text("{")
    with pytest.raises(UserError, match="not a complete JSON file"):
        parse(RESNET20, ["--config", str(config)])
