"""What a file says of its network, so that it can be built, fed and evaluated without the run it comes from."""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from common.adaptation import OBJECTIVES
from common.config.groups import Quantization, Run
from common.config.options import read_recorded
from common.data.kinds import DATA
from common.errors import UserError
from common.flags import Flag, flag, flags_of, number, shown, switch, word
from common.models import NETWORKS, build_model, known_network
from common.models.foreign import is_of_file
from common.models.table import PREPROCESSING, of_photographs
from common.quantizers import METHODS
from common.reading import parse_json, reason

MOST_CLASSES, MOST_SIDE = 1_000_000, 8192
NO_TASK = "none"  # of a network that tells apart the class folders of a user
SCHEME = {"method": "ours", "bitW": 32, "abitW": 32, "act_range": 2.0, "levels": "exact", "stage": "plain"}

side = number(int, 1, MOST_SIDE, "a side")


@dataclass(frozen=True)
class Description:
    """A network and what it was trained on.

    Attributes:
        model: ``build_model``'s name. scheme: its method, bitW, abitW, act_range, levels and stage, and the options
            that the method has of its own.
        arguments: ``build_model``'s num_classes, and img_size, quant_shortcut or quant_linear where the network has it.
        task: the name of the task, or ``NO_TASK``. classes: the class names; empty if unknown.
        preprocessing: side an image is resized to, side of the centre cropped from it, and mean and std by channel of
            pixels in [0, 1].
        data: the run's flags that say which images it had (``DataKind.chooses``), as far as it has them.
    """

    model: str
    scheme: dict[str, Any]
    arguments: dict[str, Any]
    task: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    data: dict[str, Any]

    def build(self) -> nn.Module:
        """The network, in evaluation mode, with weights yet to be filled in. It runs FILE.py of a FILE.py:FUNCTION."""
        return build_model(self.model, **self.scheme, **self.arguments).eval().requires_grad_(False)

    @property
    def data_kind(self) -> str:
        """Of its task (common.data.kinds); "" without a task."""
        return task_data().get(self.task, "")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, preprocessed."""
        side = int(self.preprocessing["crop"])
        return 3, side, side

    @property
    def demo(self) -> bool:
        return bool(self.data.get("demo"))

    def named(self, typed: str | None, path: Path) -> "Description":
        """With the network's name as the user typed it; without that, code of a file that a file names is never run.

        Args:
            path: the file that names it, for the message.
        Raises:
            UserError: the network is one of a file, and nothing was typed.
        """
        if typed is None and is_of_file(self.model):
            raise UserError(
                f"{path}: its network is {shown(self.model)}, code that is not run because a file says so; type it: "
                "--network FILE.py:FUNCTION, or --model where --checkpoint is the file"
            )
        return self if typed is None else replace(self, model=typed)

    def line(self) -> str:
        """For a report: network, method, widths, and whether it was trained on demo data."""
        bits = "float" if self.scheme["bitW"] == self.scheme["abitW"] == 32 else self.scheme["method"]
        widths = f"{self.scheme['bitW']}-bit weights, {self.scheme['abitW']}-bit activations"
        return f"{self.model}, {bits}, {widths}" + (", trained on demo data" if self.demo else "")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Description":
        """
        Raises:
            ValueError: not what ``to_json`` writes.
        """
        try:
            content = cls(**parse_json(text))
            entry = known_network(str(content.model))
            fits = [task for task, data in task_data().items() if entry is None or data == entry.data]
            if content.task not in fits + ([NO_TASK] if entry is None else []):
                raise ValueError(f"network {content.model} with task {shown(content.task)}")
            scheme = read_recorded(content.scheme, scheme_flags(str(content.scheme["method"])), "scheme")
            arguments = read_recorded(content.arguments, flags_of(_Arguments), "arguments")
            if absent := [name for name in ("bitW", "abitW") if name not in scheme]:
                raise ValueError(f"its scheme does not say {absent[0]}")
            classes = tuple(word(name) for name in content.classes)
            if not isinstance(content.classes, list) or len(classes) not in (0, arguments["num_classes"]):
                raise ValueError(f"its classes are {shown(content.classes)}, of {arguments['num_classes']}")
            return cls(
                content.model,
                scheme,
                arguments,
                content.task,
                classes,
                _checked(content.preprocessing),
                read_recorded(content.data, data_flags(), "data"),
            )
        except (argparse.ArgumentTypeError, AttributeError, KeyError, RecursionError, TypeError, UserError) as error:
            raise ValueError(reason(error)) from None


@dataclass(frozen=True)
class _Arguments:
    """Those of ``build_model`` beside the scheme."""

    num_classes: int = flag(10, number(int, 1, MOST_CLASSES))
    img_size: int = flag(224, side)
    quant_shortcut: bool = switch(False, "")
    quant_linear: bool = switch(False, "")
    adapts: bool = switch(False, "")
    bottleneck: bool = switch(False, "")


def task_data() -> dict[str, str]:
    """The kind of data of every task."""
    return {entry.task: entry.data for entry in NETWORKS.values()}


def scheme_flags(method: str) -> dict[str, Flag]:
    """What a file says of a network's quantizers, by name."""
    if method not in METHODS:
        raise UserError(f"method {shown(method)}: expected one of {', '.join(METHODS)}")
    quantization = flags_of(Quantization)
    return {name: quantization[name] for name in SCHEME} | flags_of(METHODS[method].options)


def choosing_flags() -> dict[str, Flag]:
    """Those that say which images a run had, of every kind of data, by name."""
    return {name: flags_of(kind.Options)[name] for kind in DATA.values() for name in kind.chooses}


def data_flags() -> dict[str, Flag]:
    """What a file says of its run's data, by name; "seed" is that of files from before --split_seed."""
    of_any_kind = {"img_size": flags_of(_Arguments)["img_size"], "seed": flags_of(Run)["seed"]}
    return choosing_flags() | of_any_kind


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """A preprocessing whose sizes a machine can hold and whose numbers are numbers."""
    resize, crop = (side(str(given[name])) for name in ("resize", "crop"))
    mean, std = ([float(value) for value in given[name]] for name in ("mean", "std"))
    if not (crop <= resize and len(mean) == len(std) == 3 and all(math.isfinite(one) for one in mean + std)):
        raise UserError("its preprocessing")
    if not all(one > 0 for one in std):
        raise UserError("its preprocessing divides by zero")
    return {"resize": resize, "crop": crop, "mean": mean, "std": std}


def describe(config: Mapping[str, Any], num_classes: int, classes: tuple[str, ...] = ()) -> Description:
    """The description of a network from the configuration of its run.

    Args:
        config: ``model`` and the flags of the run, as its checkpoint keeps them; absent ones have their defaults.
        classes: names, where the run recorded them; otherwise those of the task's known data.
    """
    entry = known_network(config["model"])
    arguments: dict[str, Any] = {"num_classes": num_classes}
    known: tuple[str, ...] = ()
    dataset = str(config.get("dataset") or "cifar10")
    if entry is None:
        task, size = str(config.get("task") or NO_TASK), int(config.get("img_size") or 224)
        preprocessing = PREPROCESSING.get(task_data().get(task, ""), of_photographs)(size, dataset)
        arguments |= {"quant_linear": True} if config.get("quant_linear") else {}
        if (objective := config.get("adaptation")) in OBJECTIVES:
            arguments |= {"adapts": True, "img_size": size, "bottleneck": OBJECTIVES[objective].bottleneck}
    else:
        task, size = str(config.get("task") or entry.task), int(config.get("img_size") or entry.img_size)
        preprocessing = entry.preprocessing(size, dataset)
        given = {"img_size": size, "quant_shortcut": bool(config.get("quant_shortcut"))}
        arguments |= {name: given[name] for name in entry.arguments}
        known = DATA[entry.data].classes(bool(config.get("demo"))) if dataset == "cifar10" else ()
    scheme = {name: config.get(name, default) for name, default in SCHEME.items()}
    if scheme["stage"] != "align":
        scheme["stage"] = "plain"  # by its other names
    if scheme["method"] in METHODS:
        own = flags_of(METHODS[scheme["method"]].options)
        scheme |= {name: config.get(name, flag.default) for name, flag in own.items()}
    names = next((names for names in (classes, known) if len(names) == num_classes), ())
    split_seed = config.get("split_seed", config.get("seed"))  # before --split_seed, a split followed --seed
    return Description(
        model=config["model"],
        scheme=scheme,
        arguments=arguments,
        task=task,
        classes=names,
        preprocessing={**asdict(preprocessing), "mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        data={
            name: value
            for name in choosing_flags()
            if (value := {**config, "split_seed": split_seed}.get(name)) is not None
        },
    )
