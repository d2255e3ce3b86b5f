"""A user's float network as a quantized one: the scheme of ``common.quantizers`` laid over any traced module."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import fx, nn

from common.conversion.patterns import Patterns, carries, find_patterns, is_activation, is_positive, sources
from common.conversion.tracing import trace
from common.errors import UserError
from common.quantizers import Scheme, make_scheme
from common.quantizers.layers import QuantConv2d, Quantizer, WeightQuantizer
from common.quantizers.rounding import FLOAT_BITS
from common.quantizers.scheme import AFTER_RELU, BEFORE_RELU, IN_CONV

ACTS = "act_quantizers"  # the converted network's folder of activation quantizers


class LeftFloat(UserWarning):
    """Convolutions, or the inputs of quantized ones, that stay float."""


def quantize_model(
    model: nn.Module,
    method: str = "ours",
    bitW: int = 4,
    abitW: int = 4,
    *,
    inplace: bool = False,
    leaves: Sequence[type[nn.Module]] = (),
    **options: object,
) -> fx.GraphModule:
    """A quantized network from a float one: any module that torch.fx traces, torchvision's classifiers among them.

    Convolutions that a BatchNorm normalises get quantized weights. Activations are quantized where the method has its
    place: for ``ours`` behind every such BatchNorm (before its ReLU; the branches of a residual sum each, shortcuts
    too); for uniform, dorefa, bwn, bwnf and llsq behind the ReLUs that these BatchNorms feed; for lsq and apot at the
    convolution's own input, if that comes from ReLUs alone. Everything else stays float, and what one might expect to
    be quantized and is not is named in a warning and by ``left_float``. Names in the state dict stay.

    Args:
        model: the float network, with its weights; called with the same arguments afterwards.
        bitW, abitW: bits of weights and activations; 32 is float.
        inplace: share parameters and BatchNorm statistics with ``model`` instead of copying them.
        leaves: module classes to call as they are, where their forward cannot be traced.
        options: further fields of ``Scheme``: act_range, levels, grad_approx, lam, lam2, stage; and the method's own.
    Returns:
        A torch.fx GraphModule, to be calibrated or trained.
    Raises:
        UserError: an unknown method, width or option; a forward that cannot be traced; a network that is quantized
            already, or of whose convolutions none is normalised by a BatchNorm.

    >>> network = quantize_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), bitW=4, abitW=3)
    >>> network.get_submodule("0").weight_quantizer
    AlignWeight(bits=4)
    """
    network = convert(model, make_scheme(method, bitW=bitW, abitW=abitW, **options), inplace=inplace, leaves=leaves)
    for module in network.modules():
        if isinstance(module, QuantConv2d) and isinstance(module.weight_quantizer, WeightQuantizer):
            module.weight_quantizer.initialise(module.weight.detach())
    if kept := left_float(network):
        warnings.warn(f"left float: {some_of(kept, 8)}", LeftFloat, stacklevel=2)
    return network


def left_float(network: fx.GraphModule) -> dict[str, str]:
    """By name: each convolution that stayed float, or whose input did, with the reason. The image is no such input."""
    return dict(network.meta["left_float"])


def some_of(kept: dict[str, str], most: int) -> str:
    """The first entries of ``left_float`` in words, and how many there are beyond them."""
    words = [f"{name} ({reason})" for name, reason in list(kept.items())[:most]]
    return ", ".join(words) + (f" and {len(kept) - most} more" if len(kept) > most else "")


def convert(
    model: nn.Module, scheme: Scheme, *, inplace: bool = False, leaves: Sequence[type[nn.Module]] = ()
) -> fx.GraphModule:
    """``quantize_model`` with a Scheme; learned steps of weights are left to what fills the weights, and no warning."""
    if not isinstance(model, nn.Module):
        raise UserError(f"quantize_model: expected a torch module, not {type(model).__name__}")
    if any(isinstance(module, QuantConv2d | Quantizer) for module in model.modules()):
        raise UserError(f"{type(model).__name__} is quantized already; give the float network")
    network = trace(model if inplace else copy.deepcopy(model), leaves)
    patterns = find_patterns(network)
    if not patterns.convolutions:
        raise UserError(
            f"{type(model).__name__} has nothing to quantize: expected a Conv2d with a BatchNorm2d behind it, found "
            f"{some_of(patterns.left_float, 3) or 'no convolution'}"
        )
    positive = {name: all(map(is_positive, calls)) for name, calls in patterns.convolutions.items()}
    places = {BEFORE_RELU: patterns.norms, AFTER_RELU: patterns.relus, IN_CONV: ()}[scheme.method.placement]
    network.meta["left_float"] = patterns.left_float | _float_inputs(patterns, scheme, places, positive)
    for name in patterns.convolutions:
        convolution = network.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        network.set_submodule(name, _quantized(convolution, scheme, float_input=not positive[name]))
    for node in places:
        _insert(network, node, scheme)
    network.recompile()
    return network


def _float_inputs(
    patterns: Patterns, scheme: Scheme, places: Sequence[fx.Node], positive: dict[str, bool]
) -> dict[str, str]:
    """The quantized convolutions whose input is neither quantized nor the image."""
    if scheme.abitW == FLOAT_BITS:
        return {}

    before_relu = scheme.method.placement == BEFORE_RELU

    def passes(node: fx.Node) -> bool:
        return node not in places and (carries(node) or (before_relu and is_activation(node)))

    found = {}
    for name, calls in patterns.convolutions.items():
        origins = {source for call in calls for source in sources(call, passes)}
        if all(source.op == "placeholder" for source in origins):
            continue
        if scheme.method.placement == IN_CONV:
            if not positive[name]:
                found[name] = f"its input: can be negative, {scheme.method.name} has no codes for that"
        elif strange := [source for source in origins if source not in places]:
            found[name] = f"its input: {scheme.method.name} places no quantizer behind {strange[0].name}"
    return found


def _quantized(convolution: nn.Conv2d, scheme: Scheme, float_input: bool) -> nn.Conv2d:
    """The scheme's convolution around the same parameters."""
    weight = convolution.weight
    new = scheme.conv(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.bias is not None,
        convolution.padding_mode,
        image_input=float_input,
    ).to(weight.device)
    new.weight, new.bias = weight, convolution.bias
    return new.train(convolution.training)


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
