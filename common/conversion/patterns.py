"""Which convolutions of a traced network a BatchNorm normalises, and where its activations can be quantized."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
RELUS = (nn.ReLU, nn.ReLU6)
RELU_CALLS = {F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, "relu", "relu_"}
OTHER_ACTIVATIONS = (nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU)
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
CARRIERS = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, _DropoutNd, nn.Flatten)
CARRIER_CALLS = {
    *(torch.cat, torch.concat, operator.getitem, torch.flatten, torch.chunk, torch.split, torch.transpose),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, F.dropout2d),
    *("view", "reshape", "transpose", "permute", "contiguous", "chunk", "split", "flatten", "clone"),
}


@dataclass(frozen=True)
class Patterns:
    """What was found in a network; nodes are those of its graph.

    Attributes:
        convolutions: the calls of each convolution that is to be quantized, by its name.
        norms: the BatchNorms that normalise their outputs or inputs, the image apart. relus: the ReLUs and ReLU6s that
            these feed.
        left_float: the other convolutions by name, with the reason.
    """

    convolutions: dict[str, list[fx.Node]]
    norms: tuple[fx.Node, ...]
    relus: tuple[fx.Node, ...]
    left_float: dict[str, str]


def find_patterns(network: fx.GraphModule) -> Patterns:
    """A convolution counts as normalised if a BatchNorm reads its output, itself or by way of sums, concatenations,
    poolings, dropouts and changes of shape: so do those of pre-activation networks."""
    modules = dict(network.named_modules())
    calls: dict[str, list[fx.Node]] = {}
    left: dict[str, str] = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], _ConvNd):
            calls.setdefault(node.target, []).append(node)
        elif node.op == "call_function" and node.target is F.conv2d:
            left[node.name] = "a call of conv2d, not a module"
    norms: dict[fx.Node, None] = {}
    for name in [name for name, module in modules.items() if isinstance(module, _ConvNd)]:
        readers = [end for node in calls.get(name, []) for end in _ends(node.users, carries, lambda n: n.users)]
        found = [node for node in readers if _is_norm(node)]
        if type(modules[name]) is not nn.Conv2d:
            left[name] = f"a {type(modules[name]).__name__}"
        elif name not in calls:
            left[name] = "inside a module that was not traced"
        elif not found:
            left[name] = "no BatchNorm behind it"
        else:
            norms.update(dict.fromkeys(found))
    for call in [call for name in calls if name not in left for call in calls[name]]:  # a BatchNorm before it, too
        before = [node for node in sources(call, lambda n: carries(n) or is_activation(n)) if _is_norm(node)]
        norms.update(dict.fromkeys(n for n in before if any(s.op != "placeholder" for s in sources(n))))
    relus = [n for n in network.graph.nodes if is_relu(n) and any(s in norms for s in sources(n))]
    return Patterns({name: calls[name] for name in calls if name not in left}, tuple(norms), tuple(relus), left)


def module_of(node: fx.Node) -> nn.Module | None:
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def _is_norm(node: fx.Node) -> bool:
    return isinstance(module_of(node), NORMS)


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
