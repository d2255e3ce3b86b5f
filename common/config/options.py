"""The one reader of options: from typed flags, a job's configuration, presets and tables to frozen groups.

A value that was not typed comes, in falling order, from ``--config FILE``, the demo preset (under ``--demo``), the row
of the tables for the task, pair and bit-width, the task's own defaults, and the default of its field.
"""

import argparse
import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adaptation import OBJECTIVES
from common.admm.preservation import CRPOptions
from common.config import recipes
from common.config.command_line import parser_of
from common.config.groups import (
    FLOAT,
    NOT_REPEATED,
    UNUSED,
    Adaptation,
    Backbone,
    Distillation,
    Quantization,
    Realignment,
    Run,
    Start,
    Training,
)
from common.config.tasks import Task
from common.data.kinds import DATA
from common.errors import UserError
from common.flags import BARE, Flag, flags_of, shown, values_of
from common.machine.acceleration import AccelerationOptions
from common.machine.device import DeviceOptions
from common.quantizers import METHODS
from common.reading import read_json


@dataclass(frozen=True)
class Options:
    """What a run is asked for. Groups that a task does not have are None.

    Attributes:
        own, objective: the options of its method and of its objective, as these declare them.
        data: of its kind of data. typed: the flags on the command line. notes: lines for the log.
    """

    task: Task
    quantization: Quantization
    own: Any
    start: Start
    data: Any
    training: Training
    distillation: Distillation
    acceleration: AccelerationOptions
    device: DeviceOptions
    realignment: Realignment
    run: Run
    adaptation: Adaptation | None = None
    objective: Any = None
    backbone: Backbone | None = None
    crp: CRPOptions | None = None
    typed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def pair(self) -> tuple[str, str] | None:
        """Source and target domain."""
        return self.data.pair if self.task.cross else None

    @property
    def objective_name(self) -> str:
        """In ``OBJECTIVES``."""
        return self.adaptation.adaptation if self.adaptation is not None else "source_only"

    @property
    def demo(self) -> str:
        """The word before every number that was obtained on demo data: "demo " or nothing."""
        return "demo " if self.data.demo else ""

    def flat(self) -> dict[str, Any]:
        """Every flag that has a use, by name: what config.json and checkpoints record."""
        return {name: value for group in self._groups().values() for name, value in values_of(group).items()}

    def replaced(self, **values: Any) -> "Options":
        """With other values of some flags, by name."""
        changed = {
            place: dataclasses.replace(group, **found)
            for place, group in self._groups().items()
            if (found := {name: value for name, value in values.items() if name in flags_of(type(group))})
        }
        return dataclasses.replace(self, **changed)

    def noting(self, *lines: str | None) -> "Options":
        """With further lines for the log; None is no line."""
        return dataclasses.replace(self, notes=(*self.notes, *filter(None, lines)))

    def _groups(self) -> dict[str, Any]:
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {name: group for name, group in found.items() if dataclasses.is_dataclass(group) and name != "task"}


def group_classes(task: Task) -> dict[str, type]:
    """The groups of a task's options, by their field of ``Options``; those of methods and objectives apart."""
    classes = {
        "quantization": Quantization,
        "start": Start,
        "data": DATA[task.data].Options,
        "training": Training,
        "distillation": Distillation,
        "acceleration": AccelerationOptions,
        "device": DeviceOptions,
        "realignment": Realignment,
        "run": Run,
    }
    classes |= {"adaptation": Adaptation} if task.cross else {}
    classes |= {"backbone": Backbone} if task.data == "office" else {}
    return classes | ({"crp": CRPOptions} if task.crp else {})


def _chosen_classes(task: Task) -> dict[str, dict[str, type]]:
    """The options of which one class is chosen: by --method, and by --adaptation."""
    choices = {"own": {name: method.options for name, method in METHODS.items()}}
    return choices | ({"objective": {name: one.Options for name, one in OBJECTIVES.items()}} if task.cross else {})


def all_flags(task: Task) -> dict[str, Flag]:
    """Every flag of a task's program that has a use, by name."""
    classes = [*group_classes(task).values(), *(c for kinds in _chosen_classes(task).values() for c in kinds.values())]
    return {name: flag for options in classes for name, flag in flags_of(options).items()}


def flags_in_effect(task: Task, method: str) -> dict[str, Flag]:
    """Those of a run of the task with this method and with the task's own objective."""
    classes = [*group_classes(task).values(), METHODS[method].options, OBJECTIVES[task.objective].Options]
    return {name: flag for options in classes for name, flag in flags_of(options).items()}


def read_recorded(given: Mapping[str, Any], known: Mapping[str, Flag], where: str) -> dict[str, Any]:
    """Flags that a file recorded, each read as if it had been typed.

    Args:
        given: by name, or by another spelling of the flag. where: for messages: which file.
    Raises:
        UserError: an entry that is no flag, or a value that the flag would not take.
    """
    names = {spelling.removeprefix("--"): flag.name for flag in known.values() for spelling in flag.spellings}
    if strange := [name for name in given if name not in names]:
        raise UserError(f"{where}: unknown entry {shown(strange[0])}")
    return {names[name]: known[names[name]].value(value, where) for name, value in given.items()}


def _read_config(path: str, task: Task, known: Mapping[str, Flag]) -> dict[str, Any]:
    where = f"--config {path}"
    try:
        content = read_json(Path(path), "the config.json of a job")
    except UserError as error:
        raise UserError(f"--config {error}") from None
    options = content.get("options")
    if not isinstance(options, dict):
        raise UserError(f"{where}: not the config.json of a job")
    if content.get("task") != task.name:
        raise UserError(f"{where}: made by task {shown(content.get('task'))}, this is {task.name}")
    passed = {name: value for name, value in options.items() if name not in NOT_REPEATED}
    recorded = read_recorded(passed, known, where)
    return {name: value for name, value in recorded.items() if value is not None}  # which is "not given" there too


def parse(task: Task, argv: Sequence[str] | None = None) -> Options:
    """Read a command line and fill in what was not typed.

    Raises:
        UserError: an unknown flag (with the nearest known one), a value out of range, or a flag of another method or
            objective than the chosen one.
    """
    known = all_flags(task)
    typed = vars(parser_of(task, known.values()).parse_args(sys.argv[1:] if argv is None else argv))
    unused = [name for name in UNUSED if name not in known]
    notes = [f"--{name} is accepted but has no use" for name in unused if name in typed]
    typed = {name: value for name, value in typed.items() if name not in unused}
    for name, flag in known.items():
        if name in typed and flag.read_all is not None:
            try:
                typed[name] = flag.read_all(typed[name])
            except argparse.ArgumentTypeError as error:
                raise UserError(f"argument --{name}: {error}") from None
    given = {**(_read_config(typed["config"], task, known) if typed.get("config") else {}), **typed}
    given |= _widths(given, typed, task)
    bits = given["bitW"] if given["bitW"] != FLOAT else given["abitW"]

    values = {name: flag.default for name, flag in known.items()}
    values |= {"model": task.model, "adaptation": task.objective} | dict(task.defaults)
    pair = None
    if task.cross:
        pair = (given.get("src_data", values["src_data"]), given.get("tgt_data", values["tgt_data"]))
    row = recipes.find_row(task.name, bits, pair)
    values |= {name: value for name, value in (row.flags if row else {}).items() if name in values}
    if given.get("demo"):
        preset = (recipes.DEMO if bits == FLOAT else recipes.DEMO_QUANTIZED).get(task.name, {})
        preset = {name: value for name, value in preset.items() if name not in given}
        if "num_epochs" in given:
            preset.pop("warmup_epochs", None)  # it belongs to the preset's own number
        values |= preset
        notes.append("demo preset: " + " ".join(f"--{name} {value}" for name, value in preset.items()))
    return _grouped(task, values | given, frozenset(typed), tuple(notes))


def _widths(given: Mapping[str, Any], typed: Mapping[str, Any], task: Task) -> dict[str, int]:
    """Both widths: one that is typed alone sets both, whatever a configuration says."""
    alone = [name for name in ("bitW", "abitW") if name in typed]
    if len(alone) == 1:
        return dict.fromkeys(("bitW", "abitW"), typed[alone[0]])
    found = {name: given[name] for name in ("bitW", "abitW") if name in given}
    for one, other in (("bitW", "abitW"), ("abitW", "bitW")):
        found.setdefault(one, found.get(other, task.defaults.get(one, FLOAT)))
    return found


def _grouped(task: Task, values: dict[str, Any], typed: frozenset[str], notes: tuple[str, ...]) -> Options:
    if values["method"] not in METHODS:
        raise UserError(f"--method {values['method']}: expected one of {', '.join(METHODS)}")
    if values["reset"] and (values["test_only"] or values["resume"] == BARE):
        other = "--test_only" if values["test_only"] else "--resume"
        raise UserError(f"--reset {other}: there would be nothing left for it; leave one of them out")
    _refuse_idle(values, typed)
    chosen = {"own": ("--method", values["method"])}
    if task.cross:
        values["adaptation"] = _adaptation(values, typed)
        values["epoch_length"] = values["epoch_length"] or OBJECTIVES[values["adaptation"]].epoch_length
        if values["warmup_epochs"] >= values["num_epochs"]:
            raise UserError(
                f"--warmup_epochs {values['warmup_epochs']}: expected fewer than --num_epochs {values['num_epochs']}"
            )
        chosen["objective"] = ("--adaptation", values["adaptation"])
    classes = group_classes(task)
    for place, by_name in _chosen_classes(task).items():
        flag_name, name = chosen[place]
        classes[place] = by_name[name]
        _refuse_foreign(by_name, flag_name, name, typed)
    groups = {place: one(**{key: values[key] for key in flags_of(one)}) for place, one in classes.items()}
    return Options(task=task, typed=typed, notes=notes, **groups)


def _refuse_idle(values: Mapping[str, Any], typed: Collection[str]) -> None:
    """A flag that was typed and would do nothing beside the others."""
    for name in ("distill_weight", "distill_temperature"):
        if name in typed and values["distill"] is None:
            raise UserError(f"--{name}: belongs to --distill FILE, which this run does not have")
    for name in ("lr_decay_steps", "lr_gamma"):
        if name in typed and values[name] and values["schedule"] == "cosine":
            raise UserError(f"--{name}: belongs to --schedule steps, this run has --schedule cosine")
    for name in ("adapt_images", "adapt_prior"):
        if name in typed and values["adapt"] == "none":
            raise UserError(f"--{name}: belongs to --adapt bn, which this run does not have")
    for name in ("distill", "reestimate"):
        if name in typed and values[name] and values["test_only"]:
            raise UserError(f"--{name}: belongs to training, this run has --test_only; leave one of them out")


def _adaptation(values: Mapping[str, Any], typed: Collection[str]) -> str:
    name = values["adaptation"]
    if name not in OBJECTIVES:
        raise UserError(f"--adaptation {name}: expected one of {', '.join(OBJECTIVES)}")
    if not values["src_only_flag"]:
        return name
    if "adaptation" in typed and name != "source_only":
        raise UserError(f"--src_only_flag --adaptation {name}: they contradict each other; leave one of them out")
    return "source_only"


def _refuse_foreign(by_name: Mapping[str, type], flag_name: str, chosen: str, typed: Collection[str]) -> None:
    """A flag that was typed and belongs to another method or objective than the chosen one."""
    own = flags_of(by_name[chosen])
    for name, options in by_name.items():
        for foreign in flags_of(options):
            if foreign in typed and foreign not in own:
                raise UserError(f"--{foreign} belongs to {flag_name} {name}, this run has {flag_name} {chosen}")
