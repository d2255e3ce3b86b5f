"""The flags of all programs, and where a value comes from when it was not typed.

In falling order: the command line, ``--config FILE``, the demo preset (under ``--demo``), the table's row for the task,
pair and bit-width, the task's own defaults, the default written here.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from common.config import recipes
from common.config.tasks import Kind, Task
from common.errors import UserError

CROSS: tuple[Kind, ...] = ("digits", "dann", "dsan")
OFFICE: tuple[Kind, ...] = ("dann", "dsan")
ALL: tuple[Kind, ...] = ("single", *CROSS)
BARE = ""  # value of a flag that may stand alone
NOT_REPEATED = ("config", "resume", "reset", "test_only")  # what a job's config.json does not pass on


def boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"expected true or false, 1 or 0, yes or no, not {text!r}")
    return words[text.lower()]


def _number(kind: Callable[[str], Any], low: float, what: str, strict: bool = False) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}") from None
        if not (value > low if strict else value >= low):  # also refuses nan
            raise argparse.ArgumentTypeError(f"expected {what}, not {text}")
        return value

    return parse


natural = _number(int, 0, "a whole number, 0 or more")
count = _number(int, 1, "a whole number, 1 or more")
non_negative = _number(float, 0, "a number, 0 or more")
positive = _number(float, 0, "a number above 0", strict=True)
fraction = _number(float, 0, "a number above 0", strict=True)


def epochs(words: Sequence[str]) -> list[int]:
    """[80, 120] in any spelling: with or without brackets, commas and quotes, as one word or several."""
    text = " ".join(map(str, words))
    try:
        return sorted(int(word) for word in re.split(r"[\s,]+", text.strip("[]() ")) if word)
    except ValueError:
        raise UserError(f"--lr_decay_steps {text}: expected epochs such as [80, 120], 80 120 or 80,120") from None


@dataclass(frozen=True)
class Flag:
    """One flag: its spellings, how it is read, its default, and the kinds of program that have it."""

    names: str
    read: Callable[[str], Any] = str
    default: Any = None
    help: str = ""
    kinds: tuple[Kind, ...] = ALL
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    const: Any = None
    crp: bool = False  # only where relation preservation is
    unused: bool = False  # accepted, without effect

    @property
    def key(self) -> str:
        return self.names.split()[0].lstrip("-")


def _switch(names: str, default: bool, help: str, **rest: Any) -> Flag:
    return Flag(names, boolean, default, help, nargs="?", const=True, **rest)


FLAGS: tuple[Flag, ...] = (
    # the network
    Flag("--method", str, "ours", "quantization method"),  # checked by the registry
    Flag("--bitW", count, None, "bits of the weights; 32 is float (default: as --abitW)"),
    Flag("--abitW", count, None, "bits of the activations; 32 is float (default: as --bitW)"),
    Flag("--act_range", positive, 2.0, "activations are aligned to [-r, r]"),
    Flag("--grad_approx", str, "sigmoid", "gradient of the weights' rounding", choices=("sigmoid", "ste")),
    Flag("--lam", positive, 1.0, "gain of the sigmoid gradient"),
    Flag("--lam2", positive, 4.0, "sharpness of the sigmoid gradient"),
    Flag("--levels", str, "exact", "2^k levels, or the published CRP code's grid", choices=("exact", "published")),
    Flag(
        "--stage",
        str,
        "plain",
        "align: 32-bit tensors are aligned without rounding; any other value is plain",
        choices=("plain", "align", "second", "org", "aligned"),
    ),
    Flag("--target_model --model", str, None, "network", kinds=("single",)),
    Flag("--model", str, None, "network", kinds=CROSS),
    _switch("--quant_shortcut", False, "quantize ResNet-50's downsample branches too", kinds=OFFICE),
    # where it starts from
    _switch("--pretrained", True, "start a run below 32 bits from its source file"),
    Flag("--source_dir", str, "pretrained", "folder of the source file"),
    Flag("--source_file", str, None, "file with the weights to start from (default: the table's)"),
    Flag("--backbone_weights", str, None, "ImageNet weights of the backbone: FILE, imagenet or none", kinds=OFFICE),
    # data
    Flag("--data_dir", str, None, "folder of the data (default: ./data, then the repository's data/)"),
    _switch("--download", True, "fetch a missing data set"),
    _switch("--demo", False, "train on small demo data in the real formats"),
    Flag("--src_data", str, None, "source domain", kinds=CROSS),
    Flag("--tgt_data", str, None, "target domain", kinds=CROSS),
    _switch("--src_split", True, "train on the source's training split", kinds=CROSS),
    _switch("--tgt_split", True, "train on the target's training split", kinds=CROSS),
    _switch("--train_split", True, "80/20 split; False: the whole domain for training and test", kinds=OFFICE),
    Flag("--tgt_data_dir", str, None, "folder of MNIST-M", kinds=("digits",)),
    Flag("--img_size", count, 28, "side of the images", kinds=("digits",)),
    Flag("--img_size", count, 224, "side of the images", kinds=OFFICE),
    _switch("--allow_partial", False, "accept Office-31 with other counts than the known ones", kinds=OFFICE),
    Flag("--num_workers", natural, 2, "processes that load images (data held in memory need none)"),
    # training
    Flag("--num_epochs", count, 200, "epochs"),
    Flag("--train_batch_size", count, 128, "samples per training batch (of each domain)"),
    Flag("--eval_batch_size --test_batch_size", count, 100, "samples per test batch"),
    Flag("--lr", positive, 0.04, "learning rate"),
    Flag("--lr_decay_steps", str, [80, 120], "epochs at which it is multiplied by --lr_gamma", nargs="*"),
    Flag("--lr_gamma", positive, 0.1, "factor at those epochs"),
    Flag("--alpha", non_negative, 0.0, "learning rate / (1 + alpha p)^0.75, p the progress in [0, 1]", kinds=CROSS),
    Flag("--momentum", non_negative, 0.9, "of SGD"),
    Flag("--weight_decay", non_negative, 1e-4, "of SGD; learned scales have none"),
    Flag("--backbone_lr_scale", non_negative, 0.1, "learning rate of the pretrained backbone, relative", kinds=OFFICE),
    _switch("--src_only_flag", False, "train on the source alone, without adaptation", kinds=CROSS),
    Flag("--warmup_epochs", natural, 0, "epochs on the source alone before adaptation begins", kinds=CROSS),
    Flag(
        "--epoch_length",
        str,
        "min",
        "the shorter or the longer loader",
        kinds=("digits", "dann"),
        choices=("min", "max"),
    ),
    Flag("--epoch_length", str, "max", "the shorter or the longer loader", kinds=("dsan",), choices=("min", "max")),
    Flag("--param", non_negative, 0.3, "weight of LMMD", kinds=("dsan",)),
    Flag("--lmmd_classes", str, "shared", "classes LMMD averages over", kinds=("dsan",), choices=("shared", "all")),
    Flag("--mu", positive, 0.2, "penalty of the relations", crp=True),
    Flag("--rho", positive, 0.3, "penalty of ADMM", crp=True),
    Flag("--crp_weight", non_negative, 1.0, "weight of relation preservation; 0 is without", crp=True),
    Flag("--crp_norm", str, "fro", "norm of the relations' penalty", crp=True, choices=("fro", "l1")),
    Flag(
        "--crp_on", str, "aligned", "values whose relations are preserved", crp=True, choices=("aligned", "quantized")
    ),
    # the run
    Flag("--job_dir", str, None, "folder of the run (default: experiment/…, named by method and bits)"),
    Flag("--config", str, None, "take the values of a job's config.json; typed flags win"),
    Flag("--resume", str, None, "continue from last.pt of the job, or from PATH", nargs="?", const=BARE),
    _switch("--reset", False, "delete the job's folder first"),
    _switch("--test_only", False, "evaluate and do not train"),
    _switch("--shift", False, "also evaluate on corrupted test images", kinds=("single",)),
    Flag("--shift_images", natural, 0, "how many test images --shift corrupts; 0: all", kinds=("single",)),
    Flag("--seed", natural, 0, "of initialisation, sample order and augmentation"),
    Flag("--save_every", natural, 0, "keep checkpoint/model_N.pt every N epochs; 0: last and best alone"),
    Flag("--select", str, "test", "what chooses model_best.pt", kinds=("single",), choices=("test", "val", "last")),
    Flag("--select", str, "target", "what chooses model_best.pt", kinds=CROSS, choices=("target", "source", "last")),
    Flag("--val_fraction", fraction, 0.1, "share of the training set held out by --select val", kinds=("single",)),
    Flag("--device", str, "auto", "where to compute", choices=("auto", "cpu", "cuda")),
    Flag("--gpus", natural, [0], "CUDA device; the first is used", nargs="+"),
    _switch("--sync_bn", False, "under torchrun: BatchNorm over the samples of all processes; needs CUDA"),
    _switch(
        "--compile",
        False,
        "compile the training step: up to minutes at first (ResNet-50 on a CPU); later runs find it in the cache",
    ),
    _switch("--channels_last", False, "lay images and weights out with the channels last"),
    Flag("--amp", str, None, "half precision where it is safe; fp16 needs CUDA", choices=("bf16", "fp16")),
    Flag("--print_freq", count, 200, "steps between two progress reports"),
    # of the published programs; accepted, without use there or here
    *(
        Flag(name, str, None, "accepted, without use", nargs="*", unused=True)
        for name in (
            *("--arch", "--dataset", "--source_model", "--refine", "--lr_decay_step", "--mask_step", "--random"),
            *("--keep_grad", "--tau", "--bit_range", "--dataset_root", "--src_data_dir", "--bottle_neck"),
        )
    ),
)


def flags_of(task: Task) -> list[Flag]:
    return [flag for flag in FLAGS if task.kind in flag.kinds and (task.crp or not flag.crp)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown:
            word = next((w for w in unknown[1].split() if w.startswith("-")), unknown[1].split()[0])
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(word.split("=")[0], known, 1, 0.5)
            message = f"unknown flag {word}" + (f"; did you mean {near[0]}?" if near else "; --help lists the flags")
        raise UserError(message)


def _parser(task: Task) -> _Parser:
    parser = _Parser(description=f"{task.name}: {task.model}", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in flags_of(task):
        settings: dict[str, Any] = {"type": flag.read, "choices": flag.choices, "dest": flag.key}
        if flag.nargs:
            settings["nargs"] = flag.nargs
        if flag.nargs == "?":
            settings["const"] = flag.const
        default = f" (default: {flag.default})" if flag.default is not None else ""
        text = argparse.SUPPRESS if flag.unused else flag.help + default.replace("%", "%%")
        parser.add_argument(*flag.names.split(), **settings, help=text)
    return parser


def _read_config(path: str, task: Task) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
        options = dict(content["options"])
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file; expected the config.json of a job") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        raise UserError(f"--config {path}: not the config.json of a job") from None
    if content.get("task") != task.name:
        raise UserError(f"--config {path}: made by task {content.get('task')}, this is {task.name}")
    known = {flag.key for flag in flags_of(task)}
    if strange := sorted(set(options) - known):
        raise UserError(f"--config {path}: unknown entry {strange[0]}")
    return {key: value for key, value in options.items() if key not in NOT_REPEATED}


def parse(task: Task, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line and fill in what was not typed.

    Returns:
        One attribute per flag of the task, the flags that were ``typed``, ``notes`` for the log, ``pair`` and ``bits``.
    Raises:
        UserError: an unknown flag (with the nearest known one), or a value out of range.
    """
    flags = flags_of(task)
    typed = vars(_parser(task).parse_args(sys.argv[1:] if argv is None else argv))
    if "lr_decay_steps" in typed:
        typed["lr_decay_steps"] = epochs(typed["lr_decay_steps"])
    given = {**(_read_config(typed["config"], task) if typed.get("config") else {}), **typed}
    notes = [f"--{flag.key} is accepted but has no use" for flag in flags if flag.unused and flag.key in typed]

    for one, other in (("bitW", "abitW"), ("abitW", "bitW")):
        if one not in given:
            given[one] = given.get(other, task.defaults.get(one, 32))
    bits = given["bitW"] if given["bitW"] != 32 else given["abitW"]
    values = {flag.key: flag.default for flag in flags}
    values |= {key: value for key, value in task.defaults.items() if key in values}
    pair = None
    if task.kind != "single":
        pair = (given.get("src_data", values["src_data"]), given.get("tgt_data", values["tgt_data"]))
    row = recipes.find_row(task.name, bits, pair)
    values |= {key: value for key, value in (row.flags if row else {}).items() if key in values}
    if given.get("demo"):
        preset = (recipes.DEMO if bits == 32 else recipes.DEMO_QUANTIZED).get(task.name, {})
        preset = {key: value for key, value in preset.items() if key not in given}
        if "num_epochs" in given:
            preset.pop("warmup_epochs", None)  # it belongs to the preset's own number
        values |= preset
        notes.append("demo preset: " + " ".join(f"--{key} {value}" for key, value in preset.items()))
    values |= given
    if values.get("warmup_epochs", 0) >= values["num_epochs"]:
        raise UserError(
            f"--warmup_epochs {values['warmup_epochs']}: expected fewer than --num_epochs {values['num_epochs']}"
        )
    model_flag = "target_model" if task.kind == "single" else "model"
    values[model_flag] = values[model_flag] or task.model
    options = argparse.Namespace(**values)
    options.model = values[model_flag]
    options.pair = pair
    options.bits = bits
    options.typed = frozenset(typed)
    options.notes = notes
    return options


def recorded(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """The options as config.json keeps them: every flag that has a use, by name."""
    return {flag.key: getattr(options, flag.key) for flag in flags_of(task) if not flag.unused}
