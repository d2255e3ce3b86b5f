"""The integer form of a network of "ours": between its first and its last layer nothing but integers.

A weight level is a / n_w and an activation level r b / n_a, with a = 2 c - n_w and b = 2 c - n_a odd integers, or b = 0
after the ReLU. Then a convolution is an exact integer sum, and BatchNorm, CDF and rounding are comparisons of that sum
with thresholds (``thresholds``). There is no erf, no division and no float; ReLU, residual additions, maxima
and concatenations act on integers as they are. An average pooling is a sum, whose divisor the thresholds of its
consumer absorb, and each consumer of DenseNet's concatenated sums has thresholds of its own.

The first layer multiplies the float image; its sums leave as 32-bit fixed-point numbers. The last one begins with
the sum over the pixels, an integer still, that the linear layer's scale turns into floats.

Widths, with k bits and n = 2^k - 1:

- weights a in -n..n fit int8 up to 7 bits; at 8 bits (-255..255) they are a = 2 (c - 128) + 1, an int8 code and a sum
  of the inputs;
- inputs b in 0..n fit uint8, but a residual sum of m terms reaches m n: of ten terms in ResNet-56 (310 at 5 bits, past
  255), seven in ResNet-50 (217 at 5 bits, 441 at 6), four in ResNet-20 (252 at 6 bits, 508 at 7);
- sums fit int32, which is checked when the network is built.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.deploy.graph import batch_norm_scale_shift, trace
from common.deploy.integer.layers import FirstConv, IntegerConv2d, PixelMean, SumPool, ToFloat
from common.deploy.integer.thresholds import Thresholds
from common.deploy.operations import Operation, operations
from common.quantizers.alignq import AlignAct, AlignWeight
from common.quantizers.layers import QuantConv2d

FORM = "the integer form"
CHANNELS = (1, -3)  # the dimension of the channels; every tensor of integers has four


@dataclass(frozen=True)
class Codes:
    """Integers b with the real value unit * b, low <= b <= high."""

    unit: float
    low: int
    high: int


@dataclass(frozen=True)
class Sums:
    """Integers A with the real value scale * A + shift, per channel, float64; |A| is at most ``bound``."""

    scale: Tensor
    shift: Tensor
    bound: int


Meaning = Codes | Sums | None  # of a tensor in the graph; None is float


def integer_network(network: nn.Module) -> fx.GraphModule:
    """The integer form of a network quantized by "ours"; a module from (B, C, H, W) images to class logits.

    Layers keep the network's names: a quantizer's name is that of its ``Thresholds``.

    Raises:
        UserError: a float convolution or activation between first and last layer (another method, 32 bits, ResNet-50
            without --quant_shortcut True), the published grid, or sums beyond 32 bits.
    """
    return Rewriter(trace(network)).run()


class Rewriter:
    """Walks the graph, keeping for every tensor what its integers mean, and writes the integer graph."""

    def __init__(self, source: fx.GraphModule) -> None:
        self.source = source
        self.layers: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.meaning: dict[fx.Node, Meaning] = {}
        self.rules: dict[str, Callable[[Operation], None]] = {
            "convolution": self.convolution,
            "batch_norm": self.batch_norm,
            "quantizer": self.quantizer,
            "identity": self.identity,
            "relu": self.relu,
            "add": self.add,
            "concatenate": self.concatenate,
            "max_pool": self.max_pool,
            "average_pool": self.average_pool,
            "mean": self.mean,
            "adaptive_average_pool": self.global_average,
            "flatten": self.flatten,
        }

    def run(self) -> fx.GraphModule:
        for operation in operations(self.source):
            inputs = [self.meaning[one] for one in operation.node.all_input_nodes]
            rule = self.rules.get(operation.kind)
            if rule is not None and (any(inputs) or operation.kind == "convolution"):
                rule(operation)
            elif any(inputs):
                raise operation.refuse(f"{FORM} does not know {operation.layer or operation.node.target}")
            else:
                self.copy(operation)
        return fx.GraphModule(self.layers, self.graph, "IntegerNetwork").eval()

    def input(self, operation: Operation) -> tuple[fx.Node, Meaning]:
        first = operation.inputs[0]
        return self.new[first], self.meaning[first]

    def emit(self, operation: Operation, layer: nn.Module, meaning: Meaning) -> None:
        """Apply ``layer`` in the place of an operation, under a layer's own name for its first use."""
        name = operation.node.name if operation.name in self.layers else operation.name
        self.layers[name] = layer
        self.new[operation.node] = self.graph.call_module(name, (self.input(operation)[0],))
        self.meaning[operation.node] = meaning

    def copy(self, operation: Operation, meaning: Meaning = None) -> None:
        node = operation.node
        if node.op in ("call_module", "get_attr"):
            self.layers[str(node.target)] = operator.attrgetter(str(node.target))(self.source)
        self.new[node] = self.graph.node_copy(node, lambda one: self.new[one])
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

    def identity(self, operation: Operation) -> None:
        self.new[operation.node], self.meaning[operation.node] = self.input(operation)

    def convolution(self, operation: Operation) -> None:
        conv, meaning = operation.layer, self.input(operation)[1]
        quantizer = getattr(conv, "weight_quantizer", None)
        exact = isinstance(quantizer, AlignWeight) and quantizer.grid is not None and quantizer.grid.offset > 0
        if not (isinstance(conv, QuantConv2d) and isinstance(quantizer, AlignWeight) and exact):
            raise operation.refuse(
                "the integer form exists for --method ours below 32 bits, --levels exact; this "
                f"convolution has {'float weights' if quantizer is None else quantizer}"
            )
        if conv.padding_mode != "zeros":
            raise operation.refuse(f"padding by {conv.padding_mode} has no integer form here, only zeros")
        shift = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        if meaning is None:
            if any(isinstance(layer, FirstConv | IntegerConv2d) for layer in self.layers.values()):
                raise operation.refuse(
                    "a second convolution of float values; the integer form needs every activation "
                    "quantized (--abitW below 32; for ResNet-50 --quant_shortcut True)"
                )
            first = FirstConv(conv)
            scale = torch.full_like(shift, first.unit, dtype=torch.float64)
            self.emit(operation, first, Sums(scale, shift.double(), first.bound))
            return
        codes = self.codes(operation)
        layer = IntegerConv2d(conv, codes.high, operation.name)
        scale = torch.full_like(shift, codes.unit / (2**quantizer.bits - 1), dtype=torch.float64)
        self.emit(operation, layer, Sums(scale, shift.double(), layer.bound))

    def batch_norm(self, operation: Operation) -> None:
        sums = self.sums(operation)
        scale, shift = batch_norm_scale_shift(operation.layer)
        self.new[operation.node] = self.input(operation)[0]
        self.meaning[operation.node] = Sums(sums.scale * scale, sums.shift * scale + shift, sums.bound)

    def quantizer(self, operation: Operation) -> None:
        act, sums = operation.layer, self.sums(operation)
        if not isinstance(act, AlignAct) or act.grid is None or act.grid.offset == 0:
            raise operation.refuse("the integer form needs --method ours with --levels exact below 32 bits")
        n = 2**act.bits - 1
        try:
            thresholds = Thresholds(sums.scale, sums.shift, act.bits)
        except ValueError as error:
            raise operation.refuse(f"{error}; is the file of a run that diverged?") from None
        self.emit(operation, thresholds, Codes(act.act_range / n, -n, n))

    def relu(self, operation: Operation) -> None:
        self.copy(operation, replace(self.codes(operation), low=0))

    def max_pool(self, operation: Operation) -> None:
        operation.require(FORM, return_indices=False)
        self.copy(operation, self.codes(operation))

    def add(self, operation: Operation) -> None:
        operation.require(FORM, alpha=1)
        one, other = (self.meaning.get(term) for term in operation.inputs)
        if not (isinstance(one, Codes) and isinstance(other, Codes) and one.unit == other.unit):
            raise operation.refuse(
                "adds values of which one is not quantized, or on another grid; the integer form needs "
                "both branches quantized alike (for ResNet-50 --quant_shortcut True)"
            )
        self.copy(operation, Codes(one.unit, one.low + other.low, one.high + other.high))

    def concatenate(self, operation: Operation) -> None:
        parts = [self.meaning[part] for part in operation.inputs]
        sums = [part for part in parts if isinstance(part, Sums)]
        if len(sums) != len(parts):
            raise operation.refuse("concatenates values that are not all sums of quantized convolutions")
        if operation.options["dim"] not in CHANNELS:
            operation.require(FORM, dim=1)
        scale, shift = (torch.cat([getattr(part, name) for part in sums]) for name in ("scale", "shift"))
        self.copy(operation, Sums(scale, shift, max(part.bound for part in sums)))

    def average_pool(self, operation: Operation) -> None:
        sums, kernel = self.sums(operation), operation.pair("kernel_size")
        operation.require(FORM, padding=0, ceil_mode=False, divisor_override=None)
        pool = SumPool(kernel, operation.pair("stride"), sums.bound, operation.name)
        self.emit(operation, pool, Sums(sums.scale / math.prod(kernel), sums.shift, pool.bound))

    def mean(self, operation: Operation) -> None:
        operation.require(FORM, dtype=None)
        dims = operation.options["dim"]
        if not isinstance(dims, tuple | list) or sorted(dim % 4 for dim in dims) != [2, 3]:
            raise operation.refuse(f"{FORM} knows the mean over rows and columns, not over dimensions {dims}")
        mean = PixelMean(self.codes(operation).unit, operation.options["keepdim"])
        self.emit(operation, mean, None)

    def global_average(self, operation: Operation) -> None:
        operation.require(FORM, output_size=1)
        self.emit(operation, PixelMean(self.codes(operation).unit, keepdim=True), None)

    def flatten(self, operation: Operation) -> None:
        operation.require(FORM, start_dim=1, end_dim=-1)
        self.emit(operation, nn.Sequential(nn.Flatten(), ToFloat(self.codes(operation).unit)), None)
