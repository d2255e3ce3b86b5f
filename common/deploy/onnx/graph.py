"""A traced network as ONNX nodes, layer by layer."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from common.deploy.onnx.nodes import Nodes
from common.deploy.onnx.quantizers import write_activation, write_weight
from common.errors import UserError
from common.quantizers.layers import QuantAct, QuantConv2d


class GraphWriter(Nodes):
    """Walks the graph from the input "images" to the output "logits". A layer's output has the layer's name."""

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__()
        self.source = source
        self.names: dict[fx.Node, str] = {}
        self.rules: dict[Any, Callable[[fx.Node, Any], str]] = {
            **dict.fromkeys((QuantConv2d, nn.Conv2d), self.convolution),
            **dict.fromkeys((nn.BatchNorm2d, nn.BatchNorm1d), self.batch_norm),
            **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), lambda node, layer: self.inputs(node)[0]),
            **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), lambda node, layer: self.plain("Relu", node)),
            **dict.fromkeys((nn.ReLU6, F.relu6), self.relu6),
            **dict.fromkeys((operator.add, operator.iadd, torch.add), lambda node, layer: self.plain("Add", node)),
            torch.cat: self.concat,
            **dict.fromkeys((nn.MaxPool2d, F.max_pool2d), self.max_pool),
            **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), self.average_pool),
            "mean": self.mean,
            **dict.fromkeys(
                ("flatten", torch.flatten), lambda node, layer: self.plain("Flatten", node, axis=node.args[1])
            ),
            **dict.fromkeys((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), self.global_average_pool),
            "expand": self.expand,
            nn.Linear: self.linear,
        }

    def run(self) -> None:
        """
        Raises:
            UserError: a layer that this export does not know.
        """
        for node in self.source.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = "images"
            elif node.op == "output":
                self.nodes.append(self.helper.make_node("Identity", self.inputs(node), ["logits"]))
            else:
                layer = self.source.get_submodule(str(node.target)) if node.op == "call_module" else None
                rule = self.rules.get(node.target if layer is None else type(layer))
                if isinstance(layer, QuantAct):
                    rule = self.activation
                if rule is None:
                    raise UserError(f"{node.target}: the ONNX export does not know {layer or node.target}")
                self.names[node] = rule(node, layer)

    def inputs(self, node: fx.Node) -> list[str]:
        return [self.names[one] for one in node.all_input_nodes]

    def plain(self, kind: str, node: fx.Node, **attributes: Any) -> str:
        return self.add(kind, self.inputs(node), str(node.name), **attributes)

    def activation(self, node: fx.Node, act: QuantAct) -> str:
        return write_activation(self, act, str(node.target), self.inputs(node)[0])

    def convolution(self, node: fx.Node, conv: nn.Conv2d) -> str:
        name, (value,) = str(node.target), self.inputs(node)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise UserError(f"{name}: the ONNX export knows padding by zeros, given in pixels")
        if isinstance(conv, QuantConv2d) and isinstance(conv.input_quantizer, QuantAct):
            value = write_activation(self, conv.input_quantizer, f"{name}.input_quantizer", value)
        inputs = [value, write_weight(self, conv, name)]
        inputs += [] if conv.bias is None else [self.floats(f"{name}.bias", conv.bias)]
        geometry = {"strides": conv.stride, "pads": conv.padding * 2, "dilations": conv.dilation, "group": conv.groups}
        return self.add("Conv", inputs, name, kernel_shape=conv.kernel_size, **geometry)

    def batch_norm(self, node: fx.Node, bn: nn.BatchNorm2d) -> str:
        name = str(node.target)
        values = {
            "weight": bn.weight if bn.affine else torch.ones(bn.num_features),
            "bias": bn.bias if bn.affine else torch.zeros(bn.num_features),
            "running_mean": bn.running_mean,
            "running_var": bn.running_var,
        }
        constants = [self.floats(f"{name}.{key}", value) for key, value in values.items()]
        return self.add("BatchNormalization", self.inputs(node) + constants, name, epsilon=bn.eps)

    def relu6(self, node: fx.Node, layer: nn.ReLU6 | None) -> str:
        return self.chain(str(node.name), self.inputs(node)[0], ("clipped", "Clip", (0.0, 6.0)))

    def concat(self, node: fx.Node, layer: None) -> str:
        return self.plain("Concat", node, axis=node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0))

    def global_average_pool(self, node: fx.Node, layer: nn.AdaptiveAvgPool2d | None) -> str:
        size = node.args[1] if layer is None else layer.output_size
        if size not in (1, (1, 1)):
            raise UserError(
                f"{node.target}: the ONNX export knows adaptive average pooling to one pixel, not to {size}"
            )
        return self.plain("GlobalAveragePool", node)

    def max_pool(self, node: fx.Node, layer: nn.MaxPool2d | None) -> str:
        if layer is None:
            given = dict(zip(("kernel_size", "stride", "padding"), node.args[1:], strict=False)) | dict(node.kwargs)
        else:
            given = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding")}
        kernel = given["kernel_size"]
        stride, padding = given.get("stride") or kernel, given.get("padding", 0)
        return self.plain("MaxPool", node, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def average_pool(self, node: fx.Node, layer: nn.AvgPool2d | None) -> str:
        kernel = node.args[1] if layer is None else layer.kernel_size
        return self.plain("AveragePool", node, kernel_shape=[kernel] * 2, strides=[kernel] * 2)

    def mean(self, node: fx.Node, layer: None) -> str:
        pixels: Any = node.args[1]
        axes = self.integers(f"{node.name}:axes", list(pixels))
        return self.add("ReduceMean", [*self.inputs(node), axes], str(node.name), keepdims=0)

    def expand(self, node: fx.Node, layer: None) -> str:
        sizes: Any = node.args[1:]
        shape = self.integers(f"{node.name}:shape", [max(size, 1) for size in sizes])
        return self.add("Expand", [*self.inputs(node), shape], str(node.name))

    def linear(self, node: fx.Node, layer: nn.Linear) -> str:
        name = str(node.target)
        inputs = [*self.inputs(node), self.floats(f"{name}.weight", layer.weight)]
        inputs += [] if layer.bias is None else [self.floats(f"{name}.bias", layer.bias)]
        return self.add("Gemm", inputs, name, transB=1)
