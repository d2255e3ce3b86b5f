"""Rewriting a traced network in integers: what the integers of every tensor mean, and the graph that comes of it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from common.deploy.operations import Operation, operations

FORM = "the integer form"


@dataclass(frozen=True)
class Codes:
    """Integers b with the real value unit * b + offset, low <= b <= high."""

    unit: float
    low: int
    high: int
    offset: float = 0.0


@dataclass(frozen=True)
class Sums:
    """Integers A with the real value scale * A + shift, per channel, float64.

    Attributes:
        bound: the largest |A|. rectified: the real value is that, or zero if that is negative.
    """

    scale: Tensor
    shift: Tensor
    bound: int
    rectified: bool = False


Meaning = Codes | Sums | None  # of a tensor in the graph; None is float


class GraphRewriter:
    """Walks the graph, keeping for every tensor what its integers mean, and writes the integer graph.

    Attributes:
        rules: by kind of operation, of those that act on integers. new: the node that stands for an old one.
    """

    rules: dict[str, Callable[[Operation], None]]

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.layers: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.meaning: dict[fx.Node, Meaning] = {}

    def run(self) -> fx.GraphModule:
        for operation in operations(self.source):
            inputs = [self.meaning[one] for one in operation.node.all_input_nodes]
            rule = self.rules.get(operation.kind)
            if rule is not None and (any(inputs) or operation.kind == "convolution"):
                rule(operation)
            elif any(inputs):
                raise operation.refuse(f"{FORM} does not know {operation.what}")
            else:
                self.copy(operation)
        return fx.GraphModule(self.layers, self.graph, "IntegerNetwork").eval()

    def input(self, operation: Operation) -> tuple[fx.Node, Meaning]:
        first = operation.inputs[0]
        return self.new[first], self.meaning[first]

    def emit(self, operation: Operation, layer: nn.Module, meaning: Meaning) -> None:
        """Apply ``layer`` in the place of an operation, under a layer's own name for its first use."""
        self.new[operation.node] = self.call(operation.name, layer, self.input(operation)[0], operation.node.name)
        self.meaning[operation.node] = meaning

    def call(self, name: str, layer: nn.Module, x: fx.Node, instead: str) -> fx.Node:
        """``layer`` applied to x under a name, or ``instead`` of one that is taken."""
        name = instead if name in self.layers else name
        self.layers[name] = layer
        return self.graph.call_module(name, (x,))

    def copy(self, operation: Operation, meaning: Meaning = None, x: fx.Node | None = None) -> None:
        """The operation as it is; of x in place of its input, if given."""
        node = operation.node
        if node.op in ("call_module", "get_attr"):
            self.layers[str(node.target)] = operator.attrgetter(str(node.target))(self.source)
        self.new[node] = self.graph.node_copy(node, lambda one: self.new[one] if x is None else x)
        self.meaning[node] = meaning

    def codes(self, operation: Operation) -> Codes:
        meaning = self.input(operation)[1]
        if not isinstance(meaning, Codes):
            what = "float values" if meaning is None else "sums that no quantizer follows (--abitW below 32 adds one)"
            raise operation.refuse(f"acts on {what}, which have no integer form here")
        return meaning

    def sums(self, operation: Operation) -> Sums:
        meaning = self.input(operation)[1]
        if not isinstance(meaning, Sums):
            raise operation.refuse("a quantizer, BatchNorm or pooling that no quantized convolution precedes")
        return meaning

    def unrectified(self, operation: Operation) -> Sums:
        sums = self.sums(operation)
        if sums.rectified:
            raise operation.refuse(f"behind a ReLU {FORM} knows quantizers, maxima and convolutions alone")
        return sums
