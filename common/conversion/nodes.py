"""What the nodes of a traced network do to quantized values, and where the inputs of a node come from."""

import operator
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

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
    if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's, whose import takes seconds
        return True
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

    return all(end.op in ("placeholder", "get_attr") for end in ends(_inputs(node), through, _inputs))


def sources(node: fx.Node, through: Callable[[fx.Node], bool] = carries) -> list[fx.Node]:
    """Where a node's inputs come from, seen through the nodes that ``through`` admits."""
    return ends(_inputs(node), through, _inputs)


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


def ends(
    start: Iterable[fx.Node], through: Callable[[fx.Node], bool], onward: Callable[[fx.Node], Iterable[fx.Node]]
) -> list[fx.Node]:
    """The first node on every path that is not passed through."""
    found, seen, ahead = [], set(), list(start)
    while ahead:
        node = ahead.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if through(node):
            ahead.extend(onward(node))
        else:
            found.append(node)
    return found
