"""A traced network as ONNX nodes, layer by layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from common.deploy.onnx.nodes import Nodes
from common.deploy.onnx.quantizers import write_activation, write_weight
from common.deploy.operations import Operation, operations
from common.quantizers.layers import QuantAct, QuantLayer

FORM = "the ONNX export"


class GraphWriter(Nodes):
    """Walks the graph from the input "images" to the output "logits". A layer's output has the layer's name."""

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__()
        self.source = source
        self.names: dict[fx.Node, str] = {}
        self.taken: set[str] = set()
        self.rules: dict[str, Callable[[Operation, str], str]] = {
            "convolution": self.convolution,
            "batch_norm": self.batch_norm,
            "quantizer": lambda operation, name: write_activation(
                self, operation.layer, name, self.inputs(operation)[0]
            ),
            "identity": lambda operation, name: self.inputs(operation)[0],
            "relu": lambda operation, name: self.plain("Relu", operation, name),
            "relu6": lambda operation, name: self.chain(
                name, self.inputs(operation)[0], ("clipped", "Clip", (0.0, 6.0))
            ),
            "add": self.addition,
            "concatenate": lambda operation, name: self.plain("Concat", operation, name, axis=operation.options["dim"]),
            "max_pool": self.max_pool,
            "average_pool": self.average_pool,
            "adaptive_average_pool": self.global_average_pool,
            "mean": self.mean,
            "flatten": self.flatten,
            "expand": self.expand,
            **dict.fromkeys(("linear", "quantized_linear"), self.linear),
        }

    def run(self) -> None:
        """
        Raises:
            UserError: a layer, or an argument of one, that this export does not know.
        """
        for operation in operations(self.source):
            if operation.kind == "input":
                self.names[operation.node] = "images"
            elif operation.kind == "output":
                self.nodes.append(self.helper.make_node("Identity", self.inputs(operation), ["logits"]))
            elif operation.kind in self.rules:
                self.names[operation.node] = self.rules[operation.kind](operation, self.name_of(operation))
            else:
                raise operation.refuse(f"{FORM} does not know {operation.what}")

    def name_of(self, operation: Operation) -> str:
        """The layer's, for its first use."""
        name = operation.node.name if operation.name in self.taken else operation.name
        self.taken.add(name)
        return name

    def inputs(self, operation: Operation) -> list[str]:
        return [
            self.names[one] if isinstance(one, fx.Node) else self.floats(f"{operation.name}:number", one)
            for one in operation.inputs
        ]

    def plain(self, kind: str, operation: Operation, name: str, **attributes: Any) -> str:
        return self.add(kind, self.inputs(operation), name, **attributes)

    def convolution(self, operation: Operation, name: str) -> str:
        conv = operation.layer
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise operation.refuse(f"{FORM} knows padding by zeros, given in pixels")
        geometry = {"strides": conv.stride, "pads": conv.padding * 2, "dilations": conv.dilation, "group": conv.groups}
        return self.add("Conv", self.operands(operation, name), name, kernel_shape=conv.kernel_size, **geometry)

    def operands(self, operation: Operation, name: str) -> list[str]:
        """Input, weight and bias of a layer, quantized as the layer does."""
        layer, (value,) = operation.layer, self.inputs(operation)
        if isinstance(layer, QuantLayer) and isinstance(layer.input_quantizer, QuantAct):
            value = write_activation(self, layer.input_quantizer, f"{name}.input_quantizer", value)
        bias = [] if layer.bias is None else [self.floats(f"{name}.bias", layer.bias)]
        return [value, write_weight(self, layer, name), *bias]

    def batch_norm(self, operation: Operation, name: str) -> str:
        bn = operation.layer
        values = {
            "weight": bn.weight if bn.affine else torch.ones(bn.num_features),
            "bias": bn.bias if bn.affine else torch.zeros(bn.num_features),
            "running_mean": bn.running_mean,
            "running_var": bn.running_var,
        }
        constants = [self.floats(f"{name}.{key}", value) for key, value in values.items()]
        return self.add("BatchNormalization", self.inputs(operation) + constants, name, epsilon=bn.eps)

    def addition(self, operation: Operation, name: str) -> str:
        operation.require(FORM, alpha=1)
        return self.plain("Add", operation, name)

    def max_pool(self, operation: Operation, name: str) -> str:
        operation.require(FORM, ceil_mode=False, return_indices=False)
        dilation = operation.pair("dilation")
        return self.plain("MaxPool", operation, name, **_window(operation), dilations=dilation)

    def average_pool(self, operation: Operation, name: str) -> str:
        operation.require(FORM, ceil_mode=False, divisor_override=None)
        counted = int(operation.options["count_include_pad"])
        return self.plain("AveragePool", operation, name, **_window(operation), count_include_pad=counted)

    def global_average_pool(self, operation: Operation, name: str) -> str:
        operation.require(FORM, output_size=1)
        return self.plain("GlobalAveragePool", operation, name)

    def mean(self, operation: Operation, name: str) -> str:
        operation.require(FORM, dtype=None)
        dims = operation.options["dim"]
        if dims is None:
            raise operation.refuse(f"{FORM} knows the mean over given dimensions")
        axes = self.integers(f"{name}:axes", [dims] if isinstance(dims, int) else list(dims))
        return self.add("ReduceMean", [*self.inputs(operation), axes], name, keepdims=int(operation.options["keepdim"]))

    def flatten(self, operation: Operation, name: str) -> str:
        operation.require(FORM, start_dim=1, end_dim=-1)
        return self.plain("Flatten", operation, name, axis=1)

    def expand(self, operation: Operation, name: str) -> str:
        shape = self.integers(f"{name}:shape", [max(size, 1) for size in operation.options["size"]])
        return self.add("Expand", [*self.inputs(operation), shape], name)

    def linear(self, operation: Operation, name: str) -> str:
        return self.add("Gemm", self.operands(operation, name), name, transB=1)


def _window(operation: Operation) -> dict[str, tuple[int, ...]]:
    kernel, stride, padding = (operation.pair(name) for name in ("kernel_size", "stride", "padding"))
    return {"kernel_shape": kernel, "strides": stride, "pads": padding * 2}
