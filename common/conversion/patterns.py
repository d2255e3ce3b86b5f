"""Which layers of a traced network can be quantized, which a BatchNorm normalises, and where its activations can be."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from common.conversion.attention import PRODUCTS, SelfAttention
from common.conversion.modes import InTraining

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
RELUS = (nn.ReLU, nn.ReLU6)
RELU_CALLS = {F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, "relu", "relu_"}
OTHER_ACTIVATIONS = (nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU)
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
AVERAGE_CALLS = {F.avg_pool2d, F.adaptive_avg_pool2d}
CARRIERS = (nn.Identity, nn.MaxPool2d, *AVERAGES, nn.AdaptiveMaxPool2d, _DropoutNd, nn.Flatten, InTraining)
CARRIER_CALLS = {
    *(torch.cat, torch.concat, operator.getitem, torch.flatten, torch.chunk, torch.split, torch.transpose),
    *(F.max_pool2d, *AVERAGE_CALLS, F.adaptive_max_pool2d, F.dropout, F.dropout2d),
    *("view", "reshape", "transpose", "permute", "contiguous", "chunk", "split", "flatten", "clone"),
}
CALLED_LAYERS = {F.conv2d: "conv2d", F.linear: "linear"}
PRODUCT_CALLS = {
    *(torch.matmul, operator.matmul, torch.bmm, torch.einsum, F.scaled_dot_product_attention, "matmul", "bmm"),
}


@dataclass(frozen=True)
class Patterns:
    """What was found in a network; nodes are those of its graph.

    Attributes:
        layers: the calls of each layer that is to be quantized, by its name; none for the last projection of an
            attention, whose input is inside.
        normalised: the names of those that a BatchNorm normalises.
        norms: the BatchNorms that normalise their outputs or inputs, the image apart. relus: the ReLUs and ReLU6s that
            these feed.
        left_float: the other layers, and products of activations, by name, with the reason.
    """

    layers: dict[str, list[fx.Node]]
    normalised: frozenset[str]
    norms: tuple[fx.Node, ...]
    relus: tuple[fx.Node, ...]
    left_float: dict[str, str]


def find_patterns(network: fx.GraphModule, linear: bool = False, all_convs: bool = False) -> Patterns:
    """A layer counts as normalised if a BatchNorm reads its output, itself or by way of sums, concatenations, poolings,
    dropouts and changes of shape: so do those of pre-activation networks.

    Args:
        linear: look at Linear layers too, and at products of activations. all_convs: a convolution needs no BatchNorm.
    """
    modules = dict(network.named_modules())
    kinds = (_ConvNd, nn.Linear) if linear else (_ConvNd,)
    norm_kinds = (*NORMS, nn.BatchNorm1d) if linear else NORMS
    calls, left = _calls(network, kinds, linear)

    def is_norm(node: fx.Node) -> bool:
        return isinstance(module_of(node), norm_kinds)

    norms: dict[fx.Node, None] = {}
    normalised = set()
    for name in [name for name, module in modules.items() if isinstance(module, kinds)]:
        readers = [end for node in calls.get(name, []) for end in _ends(node.users, carries, lambda n: n.users)]
        found = [node for node in readers if is_norm(node)]
        if type(modules[name]) not in (nn.Conv2d, nn.Linear):
            left[name] = f"a {type(modules[name]).__name__}"
        elif name not in calls:
            left[name] = "inside a module that was not traced"
        elif found:
            norms.update(dict.fromkeys(found))
            normalised.add(name)
        elif isinstance(modules[name], nn.Conv2d) and not all_convs:
            left[name] = "no BatchNorm behind it"
    for call in [call for name in calls if name not in left for call in calls[name]]:  # a BatchNorm before it, too
        before = [node for node in sources(call, lambda n: carries(n) or is_activation(n)) if is_norm(node)]
        norms.update(dict.fromkeys(n for n in before if any(s.op != "placeholder" for s in sources(n))))
    relus = [n for n in network.graph.nodes if is_relu(n) and any(s in norms for s in sources(n))]
    layers = {name: calls[name] for name in calls if name not in left}
    return Patterns(layers, frozenset(normalised), tuple(norms), tuple(relus), left)


def _calls(
    network: fx.GraphModule, kinds: tuple[type[nn.Module], ...], linear: bool
) -> tuple[dict[str, list[fx.Node]], dict[str, str]]:
    """The calls of each layer of some kinds by name; and by name what is computed without a layer, with the reason."""
    calls: dict[str, list[fx.Node]] = {}
    left: dict[str, str] = {}
    for node in network.graph.nodes:
        module, name = module_of(node), str(node.target)
        if isinstance(module, kinds):
            calls.setdefault(name, []).append(node)
        elif isinstance(module, SelfAttention):
            calls[f"{name}.in_proj"], calls[f"{name}.out_proj"] = [node], []
            left[name] = PRODUCTS
        elif node.target is F.conv2d or (linear and node.target is F.linear):
            left[node.name] = f"a call of {CALLED_LAYERS[node.target]}, not a module"
        elif linear and node.op in ("call_function", "call_method") and node.target in PRODUCT_CALLS:
            left[node.name] = "a product of activations"
    return calls, left


def module_of(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def is_relu(node: fx.Node) -> bool:
    called = node.op in ("call_function", "call_method") and node.target in RELU_CALLS
    return called or isinstance(module_of(node), RELUS)


def is_activation(node: fx.Node) -> bool:
    return is_relu(node) or isinstance(module_of(node), OTHER_ACTIVATIONS)


def carries(node: fx.Node) -> bool:
    """Whether a node only adds, joins, pools, drops or reshapes: levels stay levels and signs stay."""
    if node.op not in ("call_function", "call_method"):
        return isinstance(module_of(node), CARRIERS)
    if node.target in SUMS:
        return all(isinstance(term, fx.Node) for term in node.args[:2])
    return node.target in CARRIER_CALLS


def keeps_levels(node: fx.Node) -> bool:
    """Whether a node neither adds nor averages, besides: quantized values stay so."""
    called = node.target in SUMS | AVERAGE_CALLS if node.op in ("call_function", "call_method") else False
    return carries(node) and not called and not isinstance(module_of(node), AVERAGES)


def is_image(node: fx.Node) -> bool:
    """Whether a layer works on the network's input, as it is or prepared by functions alone."""

    def through(one: fx.Node) -> bool:
        return carries(one) or (one.op in ("call_function", "call_method") and one.target not in CALLED_LAYERS)

    return all(end.op in ("placeholder", "get_attr") for end in _ends(_inputs(node), through, _inputs))


def sources(node: fx.Node, through: Callable[[fx.Node], bool] = carries) -> list[fx.Node]:
    """Where a node's inputs come from, seen through the nodes that ``through`` admits."""
    return _ends(_inputs(node), through, _inputs)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node works on, without the sizes that some calls take behind them."""
    if node.op not in ("call_function", "call_method") or node.target not in CARRIER_CALLS or not node.args:
        return node.all_input_nodes
    found: list[fx.Node] = []
    fx.node.map_arg(node.args[0], found.append)
    return found


def is_positive(node: fx.Node) -> bool:
    """Whether nothing that enters a node can be negative: it comes from ReLUs alone."""
    return all(is_relu(source) for source in sources(node))


def _ends(
    start: Iterable[fx.Node], through: Callable[[fx.Node], bool], onward: Callable[[fx.Node], Iterable[fx.Node]]
) -> list[fx.Node]:
    """The first node on every path that is not passed through."""
    ends, seen, ahead = [], set(), list(start)
    while ahead:
        node = ahead.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if through(node):
            ahead.extend(onward(node))
        else:
            ends.append(node)
    return ends
