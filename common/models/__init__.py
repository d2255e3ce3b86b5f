"""The networks, built by name; methods and bit-widths are the scheme's business."""

from typing import Any

from torch import Tensor, nn

from common.errors import UserError
from common.flags import flags_of, shown
from common.models.from_torchvision import PREFIX, from_torchvision
from common.models.table import NETWORKS, Network, Preprocessing
from common.quantizers import METHODS, make_scheme


def known_network(name: str) -> Network | None:
    """The entry of a network in the table; None: one of torchvision's, which is looked up when it is built.

    Raises:
        UserError: neither.
    """
    if name.startswith(PREFIX):
        return None
    if name not in NETWORKS:
        raise UserError(f"model {shown(name)}: expected one of {', '.join(NETWORKS)}, or {PREFIX}NAME")
    return NETWORKS[name]


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
    **further: Any,
) -> nn.Module:
    """A network by the README's name, or ``torchvision:NAME``, quantized by ``method`` at bitW and abitW bits.

    Args:
        bitW, abitW: of weights and activations; 32 is float.
        num_classes: 10, 31 or (torchvision's) 1000 by name if not given.
        further: the network's own, such as ``img_size`` (VGG-2) or ``quant_shortcut`` (ResNet-50), and options that
            the method has of its own.
    Raises:
        UserError: an unknown name, method or option, or a bit-width that the method does not define.

    >>> sum(p.numel() for p in build_model("resnet20_quant", bitW=4, abitW=4).parameters())
    272474
    """
    entry = known_network(name)
    own = flags_of(METHODS[method].options) if method in METHODS else {}
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
        **{key: value for key, value in further.items() if key in own},
    )
    arguments = {key: value for key, value in further.items() if key not in own}
    if entry is None:
        return from_torchvision(name, scheme, num_classes or 1000, **arguments)
    return entry.make(scheme=scheme, num_classes=num_classes or entry.num_classes, **arguments)


def class_logits(network: Any, images: Tensor) -> Tensor:
    """(B, C) of any network here, on normalised (B, 3, H, W); a discriminator is left out."""
    if not hasattr(network, "classify"):
        return network(images)
    return network.classify(network.features(images))


__all__ = ["NETWORKS", "Network", "Preprocessing", "build_model", "class_logits", "known_network"]
