"""What a file says of its network, so that it can be built, fed and evaluated without the run it comes from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from common.data import digits, office31
from common.data.demo import cifar10 as demo_cifar10
from common.errors import UserError
from common.flags import flags_of
from common.models import NETWORKS, build_model, known_network
from common.models.table import of_photographs
from common.quantizers import METHODS

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NO_TASK = "none"  # of torchvision's networks, which tell apart the class folders of a user
SCHEME = {"method": "ours", "bitW": 32, "abitW": 32, "act_range": 2.0, "levels": "exact", "stage": "plain"}
DATA = ("demo", "src_data", "tgt_data", "train_split", "split_seed", "img_size")  # of the run, as far as it has them


@dataclass(frozen=True)
class Description:
    """A network and what it was trained on.

    Attributes:
        model: ``build_model``'s name. scheme: its method, bitW, abitW, act_range, levels and stage, and the options
            that the method has of its own.
        arguments: ``build_model``'s num_classes, and img_size or quant_shortcut where the network has it.
        task: the name of the task, or ``NO_TASK``. classes: the class names; empty if unknown.
        preprocessing: side an image is resized to, side of the centre cropped from it, and mean and std by channel of
            pixels in [0, 1].
        data: the run's demo, src_data, tgt_data, train_split, split_seed, img_size, as far as it has them.
    """

    model: str
    scheme: dict[str, Any]
    arguments: dict[str, Any]
    task: str
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    data: dict[str, Any]

    def build(self) -> nn.Module:
        """The network, in evaluation mode, with weights yet to be filled in."""
        return build_model(self.model, **self.scheme, **self.arguments).eval().requires_grad_(False)

    @property
    def data_kind(self) -> str:
        """Of its task (common.data.kinds); "" without a task."""
        entry = known_network(self.model)
        return "" if entry is None else entry.data

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, preprocessed."""
        side = int(self.preprocessing["crop"])
        return 3, side, side

    @property
    def demo(self) -> bool:
        return bool(self.data.get("demo"))

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
            content = cls(**json.loads(text))
            entry = known_network(str(content.model))
            tasks = {NO_TASK} if entry is None else {one.task for one in NETWORKS.values() if one.data == entry.data}
            if content.task not in tasks:
                raise ValueError(f"network {content.model} with task {content.task}")
            mean, std = content.preprocessing["mean"], content.preprocessing["std"]
            numbers = [content.preprocessing["resize"], content.preprocessing["crop"], *mean, *std]
            if not (len(mean) == len(std) == 3 and all(number > 0 for number in numbers)):
                raise ValueError("its preprocessing")
            return cls(**{**asdict(content), "classes": tuple(map(str, content.classes))})
        except (AttributeError, KeyError, TypeError, UserError) as error:
            raise ValueError(str(error)) from None


def describe(config: Mapping[str, Any], num_classes: int, classes: tuple[str, ...] = ()) -> Description:
    """The description of a network from the configuration of its run.

    Args:
        config: ``model`` and the flags of the run, as its checkpoint keeps them; absent ones have their defaults.
        classes: names, where the run recorded them; otherwise those of the task's known data.
    """
    entry = known_network(config["model"])
    arguments: dict[str, Any] = {"num_classes": num_classes}
    known: tuple[str, ...] = ()
    if entry is None:
        task, preprocessing = NO_TASK, of_photographs(int(config.get("img_size") or 224))
    else:
        task, size = str(config.get("task") or entry.task), int(config.get("img_size") or entry.img_size)
        preprocessing = entry.preprocessing(size)
        given = {"img_size": size, "quant_shortcut": bool(config.get("quant_shortcut"))}
        arguments |= {name: given[name] for name in entry.arguments}
        cifar = demo_cifar10.CLASSES if config.get("demo") else CIFAR10_CLASSES
        known = {"cifar10": cifar, "digits": digits.CLASSES, "office": office31.CLASSES}[entry.data]
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
        data={name: value for name in DATA if (value := {**config, "split_seed": split_seed}.get(name)) is not None},
    )
