"""Convolutions whose class pads by itself and then calls conv2d, as a padding and a Conv2d, which can be converted."""

import torch
import torch.nn.functional as F
from torch import fx, nn

ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def has_own_forward(module: nn.Module) -> bool:
    """Whether it is a Conv2d of a class that computes otherwise than torch's."""
    return isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward


def as_layers(graph: fx.Graph, model: nn.Module) -> dict[str, nn.Conv2d]:
    """Let calls of conv2d with a Conv2d's own weight and geometry call a plain Conv2d of that name.

    Returns:
        These layers by name; they share parameters and parts with the modules whose place they are to take.
    """
    layers: dict[str, nn.Conv2d] = {}
    for node in list(graph.nodes):
        name = _owner(node)
        owner = _module(model, name) if name is not None else None
        if name is None or owner is None or not has_own_forward(owner) or not _has_geometry_of(node, owner):
            continue
        layers[name] = _plain(owner)
        with graph.inserting_before(node):
            new = graph.call_module(name, (node.all_input_nodes[0],))
        node.replace_all_uses_with(new)
        read = [one for one in node.all_input_nodes if one.op == "get_attr"]
        graph.erase_node(node)
        for one in read:
            if not one.users:
                graph.erase_node(one)
    return layers


def _argument(node: fx.Node, name: str) -> object:
    place = ARGUMENTS.index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _owner(node: fx.Node) -> str | None:
    """The module whose weight a call of conv2d takes."""
    if node.op != "call_function" or node.target not in (F.conv2d, torch.conv2d):
        return None
    weight = _argument(node, "weight")
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target).endswith(".weight")):
        return None
    return str(weight.target).removesuffix(".weight")


def _module(model: nn.Module, name: str) -> nn.Conv2d | None:
    found = model.get_submodule(name)
    return found if isinstance(found, nn.Conv2d) else None


def _has_geometry_of(node: fx.Node, owner: nn.Conv2d) -> bool:
    bias = _argument(node, "bias")
    same_bias = bias is None if owner.bias is None else isinstance(bias, fx.Node) and str(bias.target).endswith(".bias")
    pairs = ((_argument(node, name), getattr(owner, name)) for name in ("stride", "padding", "dilation"))
    default = {"stride": 1, "padding": 0, "dilation": 1}
    same = all(
        _pair(given if given is not None else default[name]) == _pair(own)
        for name, (given, own) in zip(default, pairs, strict=True)
    )
    return same_bias and same and (_argument(node, "groups") or 1) == owner.groups


def _pair(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def _plain(owner: nn.Conv2d) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 1, device="meta")
    conv.__dict__.update(owner.__dict__)
    conv.stride, conv.padding, conv.dilation = (_pair(getattr(owner, n)) for n in ("stride", "padding", "dilation"))  # type: ignore[assignment]
    return conv
