"""The networks, built by name. A model is one line of ``MODELS``; methods and bit-widths are the scheme's business."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from common.errors import UserError
from common.models.densenet_cifar import DenseNetCifar
from common.models.from_torchvision import PREFIX, from_torchvision
from common.models.resnet50 import ResNet50DANN, ResNet50DSAN
from common.models.resnet_cifar import ResNetCifar
from common.models.vgg2_dann import VGG2DANN
from common.quantizers import make_scheme


@dataclass(frozen=True)
class ModelEntry:
    make: Callable[..., nn.Module]  # (scheme=, num_classes=, **task arguments)
    num_classes: int


MODELS: dict[str, ModelEntry] = {
    "resnet20_quant": ModelEntry(partial(ResNetCifar, 3), 10),
    "resnet56_quant": ModelEntry(partial(ResNetCifar, 9), 10),
    "densenet_40_quant": ModelEntry(partial(DenseNetCifar, 40, 12), 10),
    "MNISTmodel_quant": ModelEntry(VGG2DANN, 10),
    "resnet50_dann": ModelEntry(ResNet50DANN, 31),
    "resnet50_dsan": ModelEntry(ResNet50DSAN, 31),
}


def build_model(
    name: str,
    method: str = "ours",
    bitW: int = 32,
    abitW: int = 32,
    act_range: float = 2.0,
    levels: str = "exact",
    grad_approx: str = "sigmoid",
    lam: float = 1.0,
    lam2: float = 4.0,
    stage: str = "plain",
    num_classes: int | None = None,
    **task_arguments: object,
) -> nn.Module:
    """A network by the README's name, or ``torchvision:NAME``, quantized by ``method`` at bitW and abitW bits.

    Args:
        bitW, abitW: of weights and activations; 32 is float.
        num_classes: 10, 31 or (torchvision's) 1000 by name if not given.
        task_arguments: the model's own, such as ``img_size`` (VGG-2) or ``quant_shortcut`` (ResNet-50).
    Raises:
        UserError: an unknown name, method or option, or a bit-width that the method does not define.

    >>> sum(p.numel() for p in build_model("resnet20_quant", bitW=4, abitW=4).parameters())
    272474
    """
    if name not in MODELS and not name.startswith(PREFIX):
        raise UserError(f"model {name}: expected one of {', '.join(MODELS)}, or {PREFIX}NAME")
    scheme = make_scheme(
        method,
        bitW=bitW,
        abitW=abitW,
        act_range=act_range,
        levels=levels,
        grad_approx=grad_approx,
        lam=lam,
        lam2=lam2,
        stage=stage,
    )
    if name.startswith(PREFIX):
        return from_torchvision(name, scheme, num_classes or 1000, **task_arguments)
    entry = MODELS[name]
    return entry.make(scheme=scheme, num_classes=num_classes or entry.num_classes, **task_arguments)


__all__ = ["MODELS", "build_model"]
