"""One graph from two, of training and of evaluation, where only dropout and its kin tell them apart."""

from typing import Any

import torch
from torch import Tensor, fx, nn

PARTS = "training_parts"  # the converted network's folder of what training alone does


class Differs(Exception):
    """The forwards differ by more than parts of training that evaluation skips."""


class InTraining(nn.Module):
    """What a network does to a tensor in training alone, such as stochastic depth; evaluation gives the tensor back."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if self.training else x


def follow_mode(network: fx.GraphModule, root: nn.Module, evaluation: fx.Graph) -> None:
    """Make the graph of training that of both modes.

    Constants that were ``self.training`` are read from the network when it runs. Nodes that evaluation does not have
    become modules ``InTraining``, if they make one tensor of one tensor and evaluation goes on with that.

    Args:
        root: what both graphs were traced from.
    Raises:
        Differs: the graphs differ otherwise.
    """
    merge = _Merge(network, root)
    others = iter(evaluation.nodes)
    other = next(others, None)
    for node in list(network.graph.nodes):
        if other is not None and merge.join(node, other):
            other = next(others, None)
        else:
            merge.extra.append(node)
    if other is not None or merge.extra:
        raise Differs
    network.recompile()


class _Merge:
    """The nodes seen so far.

    Attributes:
        twins: the nodes of training that evaluation has too, by those of evaluation.
        calls: those of an ``InTraining``, and what they work on.
        extra: the nodes of training alone that no ``InTraining`` has taken in yet, in order.
    """

    def __init__(self, network: fx.GraphModule, root: nn.Module) -> None:
        self.network, self.root = network, root
        self.twins: dict[fx.Node, fx.Node] = {}
        self.extra: list[fx.Node] = []
        self.calls: dict[fx.Node, fx.Node] = {}
        self.mode: fx.Node | None = None

    def join(self, node: fx.Node, other: fx.Node) -> bool:
        """Take a node for evaluation's ``other``; False if it is another."""
        if node.op != other.op or not (str(node.target) == str(other.target) or self._same_constant(node, other)):
            return False
        if not self.agree((node.args, node.kwargs), (other.args, other.kwargs)):
            return False
        node.args, node.kwargs = self._merged(node.args, other.args), self._merged(node.kwargs, other.kwargs)
        self.twins[other] = node
        return True

    def _same_constant(self, node: fx.Node, other: fx.Node) -> bool:
        """Each tracing numbers anew the tensors that it meets outside of parameters and buffers."""
        names = str(node.target), str(other.target)
        if node.op != "get_attr" or not all(name.startswith("_tensor_constant") for name in names):
            return False
        return torch.equal(getattr(self.network, names[0]), getattr(self.root, names[1]))

    def agree(self, one: Any, other: Any) -> bool:
        """Whether training's argument ``one`` can be evaluation's ``other``."""
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            twin = self.twins[other]
            return one is twin or self.calls.get(one) is twin or self._part(one, twin) is not None
        if parts := _parts_of(one, other):
            return all(self.agree(a, b) for a, b in parts)
        return (one is True and other is False) or str(one) == str(other)

    def _merged(self, one: Any, other: Any) -> Any:
        if isinstance(one, fx.Node):
            kept = one is self.twins[other] or one in self.calls
            return one if kept else self._replaced(one, self.twins[other])
        if one is True and other is False:
            if self.mode is None:
                with self.network.graph.inserting_before(next(iter(self.network.graph.nodes))):
                    self.mode = self.network.graph.create_node("get_attr", "training")
            return self.mode
        if isinstance(one, slice):
            return slice(*(self._merged(a, b) for a, b in _parts_of(one, other)))
        if isinstance(one, dict):
            return {key: self._merged(value, other[key]) for key, value in one.items()}
        if isinstance(one, tuple | list):
            return type(one)(self._merged(a, b) for a, b in zip(one, other, strict=True))
        return one

    def _part(self, end: fx.Node, start: fx.Node) -> list[fx.Node] | None:
        """The extra nodes that make ``end`` of ``start`` and of nothing else, and those that work on them in place."""
        inside: set[fx.Node] = {end}
        for node in reversed(self.extra):
            if any(user in inside for user in node.users):
                inside.add(node)
        part = [node for node in self.extra if node in inside or inside.intersection(node.all_input_nodes)]
        outside = {source for node in part for source in node.all_input_nodes if source not in part}
        modules = [self.network.get_submodule(str(node.target)) for node in part if node.op == "call_module"]
        stateless = not any(module.state_dict() for module in modules)
        return part if end in part and outside == {start} and stateless else None

    def _replaced(self, end: fx.Node, start: fx.Node) -> fx.Node:
        """A call of ``InTraining`` in the place of a part."""
        part = self._part(end, start) or []
        graph = fx.Graph()
        copies = {start: graph.placeholder("x")}
        for node in part:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[end])
        name = f"{PARTS}.{end.name}"
        self.network.add_submodule(name, InTraining(fx.GraphModule(self.network, graph)).train(self.network.training))
        with self.network.graph.inserting_after(end):
            call = self.network.graph.call_module(name, (start,))
        end.replace_all_uses_with(call)
        for node in reversed(part):
            self.network.graph.erase_node(node)
        self.extra = [node for node in self.extra if node not in part]
        self.calls[call] = start
        return call


def _parts_of(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """What two arguments of the same form are made of, pairwise; nothing for others."""
    if isinstance(one, slice) and isinstance(other, slice):
        return [(one.start, other.start), (one.stop, other.stop), (one.step, other.step)]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [(one[key], other[key]) for key in one]
    if isinstance(one, tuple | list) and isinstance(other, tuple | list) and len(one) == len(other):
        return list(zip(one, other, strict=True))
    return []
