"""The networks, built by name; methods and bit-widths are the scheme's business."""

from typing import Any

from torch import Tensor, nn

from common.adaptation.base import shows_features
from common.conversion.convert import convert
from common.errors import UserError
from common.flags import flags_of, shown
from common.models.adapted import AdaptedNetwork
from common.models.foreign import FILE, TIMM, TORCHVISION, float_network, is_foreign
from common.models.table import NETWORKS, Network, Preprocessing
from common.quantizers import METHODS, Scheme, make_scheme


def known_network(name: str) -> Network | None:
    """The entry of a network in the table; None: one of others (common.models.foreign), looked up when it is built.

    Raises:
        UserError: neither.
    """
    if is_foreign(name):
        return None
    if name not in NETWORKS:
        raise UserError(
            f"model {shown(name)}: expected one of {', '.join(NETWORKS)}, {TORCHVISION}NAME, {TIMM}NAME "
            f"or FILE{FILE}FUNCTION"
        )
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
    """A network by the README's name or one of others (common.models.foreign), quantized by ``method``.

    Args:
        bitW, abitW: of weights and activations; 32 is float.
        num_classes: 10, 31 or (of others) 1000 by name if not given.
        further: the network's own, such as ``img_size`` (VGG-2) or ``quant_shortcut`` (ResNet-50); of others:
            ``quant_linear`` quantizes its Linear layers and convolutions without BatchNorm too; ``adapts`` puts a head
            for domain adaptation on it, which takes ``img_size`` and ``bottleneck``. And options that the method has
            of its own.
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
        return _foreign(name, scheme, num_classes or 1000, **arguments)
    return entry.make(scheme=scheme, num_classes=num_classes or entry.num_classes, **arguments)


def _foreign(
    name: str,
    scheme: Scheme,
    num_classes: int,
    adapts: bool = False,
    img_size: int = 224,
    bottleneck: bool = False,
    quant_linear: bool = False,
) -> nn.Module:
    network = float_network(name, num_classes)
    if adapts:
        return AdaptedNetwork(network, scheme, num_classes, img_size, bottleneck, quant_linear)
    return convert(network, scheme, linear=quant_linear, all_convs=quant_linear, inplace=True)


def class_logits(network: Any, images: Tensor) -> Tensor:
    """(B, C) of any network here, on normalised (B, 3, H, W); a discriminator is left out."""
    if not shows_features(network):
        return network(images)
    return network.classify(network.features(images))


__all__ = ["NETWORKS", "Network", "Preprocessing", "build_model", "class_logits", "known_network"]
