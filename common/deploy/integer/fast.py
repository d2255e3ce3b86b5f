"""A fast exact path on a CPU: torch.compile with oneDNN's int8 convolutions, each with one fused kernel behind it.

Every convolution but the first multiplies uint8 activations with int8 weights and returns float32, BatchNorm folded
into its output scale and bias; CDF, rounding, residual addition and ReLU are one pass over that. The result is the
trained network's but for float rounding on a threshold.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, fx, nn

from common.deploy.graph import trace
from common.deploy.integer.fast_layers import BYTE, FirstLayer, Int8Layer, SumAndReLU
from common.deploy.integer.network import Rewriter
from common.deploy.integer.rewriting import Codes, Sums
from common.deploy.operations import Operation
from common.errors import UserError
from common.machine.compiling import compiler_faults
from common.quantizers.alignq import AlignAct
from common.quantizers.layers import QuantAct, QuantConv2d


def fast_graph(network: nn.Module) -> fx.GraphModule:
    """The network of "ours" in the layers of ``fast_layers``: from (B, C, H, W) images to class logits.

    Quantizers keep the network's names; theirs is the module that contains the convolution and gives the levels.

    Raises:
        UserError: as ``integer_network``; also a quantizer that does not follow a convolution of its own (DenseNet), or
            that no ReLU follows.
    """
    return _FastRewriter(trace(network)).run()


def fast_network(network: nn.Module, image_shape: tuple[int, int, int, int]) -> nn.Module:
    """``fast_graph``, compiled: some ten seconds for ResNet-20, half a minute for ResNet-50.

    Args:
        image_shape: (B, C, H, W) of the images it will get; others are refused.
    Raises:
        UserError: as ``fast_graph`` and ``CompiledNetwork``.
    """
    return CompiledNetwork(fast_graph(network), image_shape)


class CompiledNetwork(nn.Module):
    """A graph compiled by Inductor with its weights as constants, packed for images of one shape.

    Raises:
        UserError: a build of torch without oneDNN, or no C++ compiler.
        ValueError: images of another shape.
    """

    def __init__(self, graph: nn.Module, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.compiled = compile_frozen(graph, torch.zeros(self.image_shape).to(memory_format=torch.channels_last))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape) != self.image_shape:
            raise ValueError(f"made for images {self.image_shape}, got {tuple(images.shape)}")
        return self.compiled(images.contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def compile_frozen(graph: nn.Module, *inputs: Tensor) -> Callable[..., Any]:
    """The graph compiled for inputs of these shapes and memory formats, its weights as constants.

    Raises:
        UserError: a build of torch without oneDNN, or no C++ compiler.
    """
    if not torch.backends.mkldnn.is_available():
        raise UserError("this build of torch has no oneDNN; the fast path needs it")
    # cpp_wrapper: the calls between kernels are compiled too, a fifth of ResNet-20's time
    compiled = torch.compile(graph, dynamic=False, fullgraph=True, options={"cpp_wrapper": True})
    # the option "freezing" of torch.compile comes too late for its tracing, which leaves weights as inputs
    with torch._inductor.config.patch(freezing=True), compiler_faults("the fast path needs a C++ compiler"):
        compiled(*inputs)
    return compiled


class _FastRewriter(Rewriter):
    """Puts every quantizer and its convolution into one layer, and every sum into the ReLU behind it."""

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__(source)
        self.convolutions: dict[fx.Node, tuple[fx.Node, QuantConv2d, int | None]] = {}
        self.pending: dict[fx.Node, list[fx.Node]] = {}

    def quantized(self, operation: Operation, act: QuantAct, name: str) -> tuple[fx.Node, Codes]:
        if not isinstance(act, AlignAct) or act.grid is None or act.grid.offset == 0:
            raise operation.refuse(f"the fast path exists for --method ours with --levels exact, not for {act}")
        return super().quantized(operation, act, name)

    def codes(self, operation: Operation) -> Codes:
        source = operation.inputs[0]
        if isinstance(self.meaning[source], Sums) or (operation.kind != "relu" and source in self.pending):
            raise operation.refuse("the fast path needs a quantizer behind every BatchNorm, and a ReLU behind that")
        return super().codes(operation)

    def ends_in_float(self, operation: Operation) -> bool:
        self.codes(operation)  # or refuses sums
        return False

    def concatenate(self, operation: Operation) -> None:
        if any(one in self.pending for one in operation.inputs):
            raise operation.refuse("the fast path needs a ReLU behind every quantizer")
        super().concatenate(operation)

    def convolution(self, operation: Operation) -> None:
        codes, node = self.input(operation)[1], operation.node
        super().convolution(operation)  # for its checks and its meaning
        self.graph.erase_node(self.new[node])
        sums = self.meaning[node]
        assert isinstance(sums, Sums)
        high = codes.high if isinstance(codes, Codes) else None
        if high is None:  # in real values, not in units of the fixed-point first layer
            self.meaning[node] = replace(sums, scale=torch.ones_like(sums.scale))
        self.new[node] = self.new[operation.inputs[0]]
        self.convolutions[node] = (self.new[node], operation.layer, high)

    def batch_norm(self, operation: Operation) -> None:
        super().batch_norm(operation)
        if (source := operation.inputs[0]) in self.convolutions:
            self.convolutions[operation.node] = self.convolutions[source]

    def identity(self, operation: Operation) -> None:
        super().identity(operation)
        for table in (self.convolutions, self.pending):
            if (source := operation.inputs[0]) in table:
                table[operation.node] = table[source]  # type: ignore[assignment]

    def quantizer(self, operation: Operation) -> None:
        act, sums, node = operation.layer, self.sums(operation), operation.node
        if operation.inputs[0] not in self.convolutions:
            raise operation.refuse("the fast path needs a convolution of its own before every quantizer")
        super().quantizer(operation)  # for its checks and its meaning
        name = str(self.new[node].target)
        inputs, conv, high = self.convolutions[operation.inputs[0]]
        self.layers[name] = (
            FirstLayer(conv, sums.scale, sums.shift, act)
            if high is None
            else Int8Layer(conv, sums.scale, sums.shift, high, act)
        )
        self.graph.erase_node(self.new[node])
        self.new[node] = self.graph.call_module(name, (inputs,))
        self.pending[node] = [self.new[node]]

    def add(self, operation: Operation) -> None:
        super().add(operation)
        self.graph.erase_node(self.new[operation.node])
        terms = [self.pending.get(one, [self.new[one]]) for one in operation.inputs]
        self.pending[operation.node] = [term for those in terms for term in those]

    def relu(self, operation: Operation) -> None:
        codes, source = self.codes(operation), operation.inputs[0]
        terms = self.pending.get(source) or [self.new[source]]
        name = f"sum_{operation.node.name}"
        self.layers[name] = SumAndReLU(codes.high)
        self.new[operation.node] = self.graph.call_module(name, tuple(terms))
        self.meaning[operation.node] = replace(codes, low=0)

    def max_pool(self, operation: Operation) -> None:
        """torch's max_pool2d indexes bytes with bytes: too few for a feature map. float32 holds the codes exactly."""
        codes, source = self.codes(operation), self.new[operation.inputs[0]]
        self.new[operation.inputs[0]] = self.graph.call_method("float", (source,))
        super().max_pool(operation)
        dtype = torch.uint8 if codes.high < BYTE else torch.int32
        self.new[operation.node] = self.graph.call_method("to", (self.new[operation.node], dtype))
        self.new[operation.inputs[0]] = source
