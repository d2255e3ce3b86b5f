"""The table of networks: one line each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from common.data import digits
from common.data.folder_batches import IMAGENET_MEAN, IMAGENET_STD
from common.data.kinds.cifar10 import KNOWN, PHOTOGRAPHS
from common.models.densenet_cifar import DenseNetCifar
from common.models.resnet50 import ResNet50DANN, ResNet50DSAN
from common.models.resnet_cifar import ResNetCifar
from common.models.vgg2_dann import VGG2DANN

RESIZED = 256 / 224  # of a photograph, before its centre is cropped


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a network sees it.

    Attributes:
        resize, crop: pixels of the side it is resized to, and of the centre cropped from that.
        mean, std: of the three channels, for pixels in [0, 1].
    """

    resize: int
    crop: int
    mean: Sequence[float]
    std: Sequence[float]


def of_cifar10(size: int, dataset: str = "cifar10") -> Preprocessing:
    """Of one of the known sets, or of a folder of photographs."""
    if dataset in KNOWN:
        return Preprocessing(size, size, KNOWN[dataset].MEAN, KNOWN[dataset].STD)
    return of_photographs(size) if size >= PHOTOGRAPHS else Preprocessing(size, size, IMAGENET_MEAN, IMAGENET_STD)


def of_digits(size: int, dataset: str = "") -> Preprocessing:
    return Preprocessing(size, size, digits.MEAN, digits.STD)


def of_photographs(size: int, dataset: str = "") -> Preprocessing:
    return Preprocessing(round(size * RESIZED), size, IMAGENET_MEAN, IMAGENET_STD)


PREPROCESSING: dict[str, Callable[[int, str], Preprocessing]] = {  # by kind of data (common.data.kinds)
    "cifar10": of_cifar10,
    "digits": of_digits,
    "office": of_photographs,
}


@dataclass(frozen=True)
class Network:
    """A network that programs and files know by name.

    Where it has the methods ``features`` and ``classify`` (and perhaps ``discriminate``), domains can be adapted; its
    ``crp_sites()`` are where relations are preserved.

    Attributes:
        make: (scheme=, num_classes=, and those of ``arguments``) to the module.
        task: its own. data: the kind of data it takes (common.data.kinds).
        class_layer: the linear layer whose rows are the classes. num_classes, img_size: unless others are asked for.
        preprocessing: by the side of an image and the run's --dataset. arguments: further ones of ``make``.
    """

    make: Callable[..., nn.Module]
    task: str
    data: str
    class_layer: str
    preprocessing: Callable[[int, str], Preprocessing]
    num_classes: int = 10
    img_size: int = 224
    arguments: tuple[str, ...] = ()


NETWORKS: dict[str, Network] = {
    "resnet20_quant": Network(partial(ResNetCifar, 3), "resnet20", "cifar10", "logit", of_cifar10, img_size=32),
    "resnet56_quant": Network(partial(ResNetCifar, 9), "resnet56", "cifar10", "logit", of_cifar10, img_size=32),
    "densenet_40_quant": Network(
        partial(DenseNetCifar, 40, 12), "densenet40", "cifar10", "fc", of_cifar10, img_size=32
    ),
    "MNISTmodel_quant": Network(
        *(VGG2DANN, "dann_digits", "digits", "classifier.6", of_digits),
        img_size=28,
        arguments=("img_size",),
    ),
    "resnet50_dann": Network(
        ResNet50DANN,
        "dann_office",
        "office",
        "class_classifier.c_fc3",
        of_photographs,
        31,
        arguments=("quant_shortcut",),
    ),
    "resnet50_dsan": Network(
        *(ResNet50DSAN, "dsan_office", "office", "cls_fc", of_photographs),
        num_classes=31,
        arguments=("quant_shortcut",),
    ),
}
