"""What a file says of its network, so that it can be built, fed and evaluated without the run it comes from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from common.config.tasks import Kind
from common.data import cifar10, digits, office31
from common.data.demo import cifar10 as demo_cifar10
from common.data.folder_batches import IMAGENET_MEAN, IMAGENET_STD
from common.errors import UserError
from common.models import build_model
from common.models.from_torchvision import PREFIX

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_SIZE = 32
NO_TASK = "none"


@dataclass(frozen=True)
class Use:
    """What a network is for: its task's name and kind, and the parameter whose length is the number of classes.

    ``NO_TASK`` is the task of torchvision's networks, which tell apart the class folders of a user.
    """

    task: str
    kind: Kind
    class_bias: str


USES: dict[str, Use] = {
    "resnet20_quant": Use("resnet20", "single", "logit.bias"),
    "resnet56_quant": Use("resnet56", "single", "logit.bias"),
    "densenet_40_quant": Use("densenet40", "single", "fc.bias"),
    "MNISTmodel_quant": Use("dann_digits", "digits", "classifier.6.bias"),
    "resnet50_dann": Use("dann_office", "dann", "class_classifier.c_fc3.bias"),
    "resnet50_dsan": Use("dsan_office", "dsan", "cls_fc.bias"),
}
SCHEME = {"method": "ours", "bitW": 32, "abitW": 32, "act_range": 2.0, "levels": "exact", "stage": "plain"}
DATA = ("demo", "src_data", "tgt_data", "train_split", "seed", "img_size")  # of the run, as far as it has them


@dataclass(frozen=True)
class Description:
    """A network and what it was trained on.

    Attributes:
        model, scheme: ``build_model``'s name, and its method, bitW, abitW, act_range, levels and stage.
        arguments: ``build_model``'s num_classes, and img_size or quant_shortcut where the network has it.
        task: the name of the task, or ``NO_TASK``. classes: the class names; empty if unknown.
        preprocessing: side an image is resized to, side of the centre cropped from it, and mean and std by channel of
            pixels in [0, 1].
        data: the run's demo, seed, src_data, tgt_data, train_split, img_size, as far as it has them.
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
    def kind(self) -> Kind:
        return use_of(self.model).kind

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
            if use_of(content.model).task != content.task:
                raise ValueError(f"network {content.model} with task {content.task}")
            mean, std = content.preprocessing["mean"], content.preprocessing["std"]
            numbers = [content.preprocessing["resize"], content.preprocessing["crop"], *mean, *std]
            if not (len(mean) == len(std) == 3 and all(number > 0 for number in numbers)):
                raise ValueError("its preprocessing")
            return cls(**{**asdict(content), "classes": tuple(map(str, content.classes))})
        except (AttributeError, KeyError, TypeError, UserError) as error:
            raise ValueError(str(error)) from None


def use_of(model: str) -> Use:
    if str(model).startswith(PREFIX):
        return Use(NO_TASK, "single", "")
    if str(model) not in USES:
        raise UserError(f"model {model}: expected one of {', '.join(USES)}, or {PREFIX}NAME")
    return USES[model]


def describe(config: Mapping[str, Any], num_classes: int, classes: tuple[str, ...] = ()) -> Description:
    """The description of a network from the configuration of its run.

    Args:
        config: ``model`` and the flags of the run, as its checkpoint keeps them; absent ones have their defaults.
        classes: names, where the run recorded them; otherwise those of the task's known data.
    """
    use = use_of(config["model"])
    cifar = use.kind == "single" and use.task != NO_TASK
    size = CIFAR10_SIZE if cifar else int(config.get("img_size") or (28 if use.kind == "digits" else 224))
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if use.kind == "digits":
        arguments["img_size"] = size
    if use.kind in ("dann", "dsan"):
        arguments["quant_shortcut"] = bool(config.get("quant_shortcut"))
    scheme = {name: config.get(name, default) for name, default in SCHEME.items()}
    if scheme["stage"] != "align":
        scheme["stage"] = "plain"  # by its other names
    resize, mean, std = size, cifar10.MEAN, cifar10.STD
    known: tuple[str, ...] = demo_cifar10.CLASSES if config.get("demo") else CIFAR10_CLASSES
    if use.kind == "digits":
        mean, std, known = digits.MEAN, digits.STD, digits.CLASSES
    elif not cifar:
        resize, mean, std = round(size * 256 / 224), IMAGENET_MEAN, IMAGENET_STD
        known = () if use.task == NO_TASK else office31.CLASSES
    names = next((names for names in (classes, known) if len(names) == num_classes), ())
    return Description(
        model=config["model"],
        scheme=scheme,
        arguments=arguments,
        task=use.task,
        classes=names,
        preprocessing={"resize": resize, "crop": size, "mean": list(mean), "std": list(std)},
        data={name: config[name] for name in DATA if config.get(name) is not None},
    )


def class_logits(network: nn.Module, kind: Kind, images: Tensor) -> Tensor:
    """(B, num_classes) of any network; DANN's take a reversal strength and give domain logits too, here left out."""
    return network(images, 0.0)[0] if kind in ("digits", "dann") else network(images)
