"""A user's float network as a quantized one: the scheme of ``common.quantizers`` laid over any traced module."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import fx, nn

from common.conversion.attention import open_attention
from common.conversion.inputs import input_of
from common.conversion.layers import quantized_layer
from common.conversion.patterns import find_patterns
from common.conversion.tracing import trace
from common.errors import UserError
from common.quantizers import Scheme, make_scheme
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantLayer, initialise_weights
from common.quantizers.scheme import AFTER_RELU, BEFORE_RELU, IN_CONV

ACTS = "act_quantizers"  # the converted network's folder of activation quantizers


class LeftFloat(UserWarning):
    """Layers, or the inputs of quantized ones, that stay float."""


def quantize_model(
    model: nn.Module,
    method: str = "ours",
    bitW: int = 4,
    abitW: int = 4,
    *,
    linear: bool = False,
    all_convs: bool = False,
    inplace: bool = False,
    leaves: Sequence[type[nn.Module]] = (),
    **options: object,
) -> fx.GraphModule:
    """A quantized network from a float one: any module that torch.fx traces, torchvision's classifiers among them.

    Convolutions that a BatchNorm normalises get quantized weights. Activations are quantized where the method has its
    place: for ``ours`` behind every such BatchNorm (before its ReLU; the branches of a residual sum each, shortcuts
    too); for uniform, dorefa, bwn, bwnf and llsq behind the ReLUs that these BatchNorms feed; for lsq, apot and
    centroid at the convolution's own input, if that comes from ReLUs alone. Everything else stays float, and what one
    might expect to be quantized and is not is named in a warning and by ``left_float``. Names in the state dict stay.

    That is what the paper quantizes. A network with layers that no BatchNorm normalises, such as a transformer or one
    with squeeze and excitation, shrinks to about k/32 with ``linear=True, all_convs=True``: all its Linear layers and
    convolutions get quantized weights on the scale of the float ones, and those whose input is not levels quantize it
    themselves. ``ours`` and ``uniform`` do so after standardising it by its running mean and standard deviation,
    lsq and centroid with signed codes behind anything but ReLUs; the other methods have no codes for negative inputs,
    which stay float. The last Linear layer is quantized like all others. Products of activations, as in attention, stay
    float; ``nn.MultiheadAttention`` of one tensor becomes ``SelfAttention``, whose state has ``in_proj.weight`` and
    ``in_proj.bias`` in the place of ``in_proj_weight`` and ``in_proj_bias``. ``calibrate`` estimates the statistics.

    Args:
        model: the float network, with its weights; called with the same arguments afterwards.
        bitW, abitW: bits of weights and activations; 32 is float.
        linear: quantize Linear layers, the projections of attention too.
        all_convs: quantize convolutions without a BatchNorm, and inputs for which the method has no place.
        inplace: share parameters and BatchNorm statistics with ``model`` instead of copying them.
        leaves: module classes to call as they are, where their forward cannot be traced.
        options: further fields of ``Scheme``: act_range, levels, grad_approx, lam, lam2, stage; and the method's own.
    Returns:
        A torch.fx GraphModule, to be calibrated or trained.
    Raises:
        UserError: an unknown method, width or option; a forward that cannot be traced; a network that is quantized
            already, or has no layer to quantize.

    >>> network = quantize_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), bitW=4, abitW=3)
    >>> network.get_submodule("0").weight_quantizer
    AlignWeight(bits=4)
    """
    scheme = make_scheme(method, bitW=bitW, abitW=abitW, **options)
    network = convert(model, scheme, linear=linear, all_convs=all_convs, inplace=inplace, leaves=leaves)
    initialise_weights(network)
    if kept := left_float(network):
        warnings.warn(f"left float: {some_of(kept, 8)}", LeftFloat, stacklevel=2)
    return network


def left_float(network: fx.GraphModule) -> dict[str, str]:
    """By name: each layer that stayed float, or whose input did, with the reason. The image is no such input.

    Linear layers, and products of activations, are named if ``linear=True`` asked for them.
    """
    return dict(network.meta["left_float"])


def some_of(kept: dict[str, str], most: int) -> str:
    """The first entries of ``left_float`` in words, and how many there are beyond them."""
    words = [f"{name} ({reason})" for name, reason in list(kept.items())[:most]]
    return ", ".join(words) + (f" and {len(kept) - most} more" if len(kept) > most else "")


def convert(
    model: nn.Module,
    scheme: Scheme,
    *,
    linear: bool = False,
    all_convs: bool = False,
    inplace: bool = False,
    leaves: Sequence[type[nn.Module]] = (),
) -> fx.GraphModule:
    """``quantize_model`` with a Scheme; learned steps of weights are left to what fills the weights, and no warning."""
    if not isinstance(model, nn.Module):
        raise UserError(f"quantize_model: expected a torch module, not {type(model).__name__}")
    if any(isinstance(module, QuantLayer | Quantizer) for module in model.modules()):
        raise UserError(f"{type(model).__name__} is quantized already; give the float network")
    network = trace(model if inplace else copy.deepcopy(model), leaves)
    if linear:
        open_attention(network)
    patterns = find_patterns(network, linear, all_convs)
    if not patterns.layers:
        expected = "a Conv2d or a Linear" if linear and all_convs else "a Conv2d with a BatchNorm2d behind it"
        more = (
            "" if linear and all_convs else "; linear=True, all_convs=True (--quant_linear) quantize other layers too"
        )
        raise UserError(
            f"{type(model).__name__} has nothing to quantize: expected {expected}, found "
            f"{some_of(patterns.left_float, 3) or 'no convolution'}{more}"
        )
    places = {BEFORE_RELU: patterns.norms, AFTER_RELU: patterns.relus, IN_CONV: ()}[scheme.method.placement]
    left = dict(patterns.left_float)
    for name in patterns.layers:
        quantizer, reason = input_of(name, patterns, scheme, places, all_convs)
        weights = scheme.weights(scaled=name not in patterns.normalised)
        network.set_submodule(name, quantized_layer(network.get_submodule(name), weights, quantizer))
        if reason:
            left[name] = reason
    for node in places:
        _insert(network, node, scheme)
    network.meta["left_float"] = left
    network.recompile()
    return network


def _insert(network: fx.GraphModule, node: fx.Node, scheme: Scheme) -> None:
    """The scheme's activation quantizer behind ``node``."""
    quantizer = scheme.before_relu() if scheme.method.placement == BEFORE_RELU else scheme.after_relu()
    if isinstance(quantizer, nn.Identity):
        return
    device = next(iter(network.parameters()), torch.empty(0)).device
    name = f"{ACTS}.{node.name}"
    network.add_submodule(name, quantizer.to(device).train(network.training))
    with network.graph.inserting_after(node):
        new = network.graph.call_module(name)
    node.replace_all_uses_with(new)
    new.args = (node,)
