"""Which layers of a traced network can be quantized, which a BatchNorm normalises, and where its activations can be."""

import inspect
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from common.conversion.attention import PRODUCTS, SelfAttention
from common.conversion.layers import takes_its_weight
from common.conversion.nodes import (
    CALLED_LAYERS,
    NORMS,
    PRODUCT_CALLS,
    carries,
    ends,
    is_activation,
    is_relu,
    module_of,
    sources,
)


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
        readers = [end for node in calls.get(name, []) for end in ends(node.users, carries, lambda n: n.users)]
        found = [node for node in readers if is_norm(node)]
        if name not in calls:
            left[name] = "inside a module that was not traced"
        elif not takes_its_weight(modules[name]):
            left[name] = f"a {type(modules[name]).__name__}"
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
        elif linear and isinstance(module, nn.MultiheadAttention):
            left[name] = "attention of several tensors, with a mask, or whose weights are read"
        elif linear and _is_foreign(node):
            left[node.name] = f"a call of {node.target.__name__}, not a module"
    return calls, left


def _is_foreign(node: fx.Node) -> bool:
    """Whether a function that is not torch's works on parameters of the network."""
    function = inspect.isfunction(node.target) and not node.target.__module__.startswith("torch.")
    return function and any(one.op == "get_attr" and one.target != "training" for one in node.all_input_nodes)
