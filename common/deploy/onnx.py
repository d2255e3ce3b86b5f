"""ONNX: the trained network with k-bit weights in the file, for onnxruntime and anything else that reads opset 21.

Weights are stored as codes c in 0..n, UINT4 up to 4 bits and UINT8 above, followed by DequantizeLinear and an addition:
level = c (2 / n) - 1. The output of every activation quantizer carries the quantizer's name.
"""

import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.deploy.graph import trace
from common.deploy.integer_layers import weight_integers
from common.errors import UserError
from common.quantizers.alignq import AlignAct, AlignWeight
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import SQRT_HALF

OPSET = 21  # the first with 4-bit integers in DequantizeLinear
IR_VERSION = 10  # that opset's


def need(name: str) -> Any:
    """The module ``name`` of the deploy extra.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'{name} is not installed; python -m pip install -e ".[deploy]" brings it') from None


def export_onnx(
    network: nn.Module, path: Path, image_shape: tuple[int, int, int], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network quantized by "ours" as ``path``: input "images" (batch, C, H, W), output "logits".

    Args:
        image_shape: (C, H, W) of one image; the batch is dynamic.
        metadata: stored in the file, beside what is needed to name its format.
    Raises:
        UserError: onnx is not installed, or the network holds a layer that this export does not know.
        onnx.checker.ValidationError: a defect of this export.
    """
    model = onnx_model(network, image_shape, metadata or {})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def onnx_model(network: nn.Module, image_shape: tuple[int, int, int], metadata: Mapping[str, str]) -> Any:
    """The checked ModelProto of ``export_onnx``."""
    onnx = need("onnx")
    writer = _Writer(trace(network))
    writer.run()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        writer.nodes,
        "alignq",
        [helper.make_tensor_value_info("images", kind, ["batch", *image_shape])],
        [helper.make_tensor_value_info("logits", kind, ["batch", None])],
        writer.constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="alignq"
    )
    helper.set_model_props(model, {"method": "ours", **metadata})
    onnx.checker.check_model(model, full_check=True)
    return model


def open_session(model: bytes | str, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU that turns the codes into floats once, at loading, and not in every run.

    Args:
        model: the bytes or the path of a file; threads: 0 leaves the number to onnxruntime.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Writer:
    """Walks the traced graph and writes ONNX nodes; a tensor is known by its name."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.helper = need("onnx").helper
        self.types = need("onnx").TensorProto
        self.source = source
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.names: dict[fx.Node, str] = {}
        self.rules: dict[Any, Callable[[fx.Node, Any], str]] = {
            **dict.fromkeys((QuantConv2d, nn.Conv2d), self.convolution),
            **dict.fromkeys((nn.BatchNorm2d, nn.BatchNorm1d), self.batch_norm),
            AlignAct: self.quantizer,
            **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), lambda node, layer: self.inputs(node)[0]),
            **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), lambda node, layer: self.plain("Relu", node)),
            **dict.fromkeys((operator.add, torch.add), lambda node, layer: self.plain("Add", node)),
            torch.cat: lambda node, layer: self.plain("Concat", node, axis=node.args[1]),
            **dict.fromkeys((nn.MaxPool2d, F.max_pool2d), self.max_pool),
            **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), self.average_pool),
            "mean": self.mean,
            "flatten": lambda node, layer: self.plain("Flatten", node, axis=node.args[1]),
            "expand": self.expand,
            nn.Linear: self.linear,
        }

    def run(self) -> None:
        for node in self.source.graph.nodes:
            if node.op == "placeholder":
                self.names[node] = "images"
            elif node.op == "output":
                self.nodes.append(self.helper.make_node("Identity", self.inputs(node), ["logits"]))
            else:
                layer = self.source.get_submodule(str(node.target)) if node.op == "call_module" else None
                rule = self.rules.get(node.target if layer is None else type(layer))
                if rule is None:
                    raise UserError(f"{node.target}: the ONNX export does not know {layer or node.target}")
                self.names[node] = rule(node, layer)

    def inputs(self, node: fx.Node) -> list[str]:
        return [self.names[one] for one in node.all_input_nodes]

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(kind, inputs, [output], name=f"{kind}:{output}", **attributes))
        return output

    def plain(self, kind: str, node: fx.Node, **attributes: Any) -> str:
        return self.add(kind, self.inputs(node), str(node.name), **attributes)

    def constant(self, name: str, value: Tensor | float | list[int] | None) -> str:
        whole = isinstance(value, list)
        array = np.asarray(value, dtype=np.int64 if whole else np.float32)
        kind = self.types.INT64 if whole else self.types.FLOAT
        self.constants.append(self.helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
        return name

    def weight(self, conv: nn.Conv2d, name: str) -> str:
        """The name of the float weights; in the file they are codes."""
        quantizer = getattr(conv, "weight_quantizer", None)
        if quantizer is None or isinstance(quantizer, nn.Identity):
            return self.constant(f"{name}.weight", conv.weight)
        if not isinstance(quantizer, AlignWeight) or quantizer.grid is None or quantizer.grid.offset == 0:
            raise UserError(f"{name}: the ONNX export is for --method ours, --levels exact")
        assert isinstance(conv, QuantConv2d)
        n = 2**quantizer.bits - 1
        codes = ((weight_integers(conv) + n) // 2).numpy().astype(np.uint8)
        kind, raw = self.types.UINT8, codes.flatten()
        if quantizer.bits <= 4:
            pairs = np.append(raw, np.zeros(raw.size % 2, np.uint8)).reshape(-1, 2)
            kind, raw = self.types.UINT4, pairs[:, 0] | pairs[:, 1] << 4
        self.constants.append(self.helper.make_tensor(f"{name}.codes", kind, codes.shape, raw.tobytes(), raw=True))
        step = self.constant(f"{name}.step", 2 / n)
        scaled = self.add("DequantizeLinear", [f"{name}.codes", step], f"{name}.scaled")
        return self.add("Add", [scaled, self.constant(f"{name}.lowest", -1.0)], f"{name}.weight")

    def convolution(self, node: fx.Node, conv: nn.Conv2d) -> str:
        name = str(node.target)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise UserError(f"{name}: the ONNX export knows padding by zeros, given in pixels")
        inputs = [*self.inputs(node), self.weight(conv, name)]
        inputs += [] if conv.bias is None else [self.constant(f"{name}.bias", conv.bias)]
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
        constants = [self.constant(f"{name}.{key}", value) for key, value in values.items()]
        return self.add("BatchNormalization", self.inputs(node) + constants, name, epsilon=bn.eps)

    def quantizer(self, node: fx.Node, act: AlignAct) -> str:
        """The steps of ``alignq.aligned_position`` and ``Grid.values``, in their order."""
        name, grid = str(node.target), act.grid
        assert grid is not None
        (value,) = self.inputs(node)
        for step, kind, operand in (
            ("scaled", "Mul", SQRT_HALF),
            ("erf", "Erf", None),
            ("spread", "Mul", act.act_range * grid.scale),
            ("position", "Add", grid.offset),
            ("code", "Round", None),
            ("spaced", "Mul", 1 / grid.scale),
            ("", "Add", -grid.offset / grid.scale),
        ):
            output = f"{name}.{step}" if step else name
            operands = [] if operand is None else [self.constant(f"{output}:by", operand)]
            value = self.add(kind, [value, *operands], output)
        return value

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
        axes = self.constant(f"{node.name}:axes", list(pixels))
        return self.add("ReduceMean", [*self.inputs(node), axes], str(node.name), keepdims=0)

    def expand(self, node: fx.Node, layer: None) -> str:
        sizes: Any = node.args[1:]
        shape = self.constant(f"{node.name}:shape", [max(size, 1) for size in sizes])
        return self.add("Expand", [*self.inputs(node), shape], str(node.name))

    def linear(self, node: fx.Node, layer: nn.Linear) -> str:
        name = str(node.target)
        inputs = [*self.inputs(node), self.constant(f"{name}.weight", layer.weight)]
        inputs += [] if layer.bias is None else [self.constant(f"{name}.bias", layer.bias)]
        return self.add("Gemm", inputs, name, transB=1)
