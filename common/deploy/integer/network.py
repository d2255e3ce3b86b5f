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

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.deploy.graph import batch_norm_scale_shift, trace
from common.deploy.integer.layers import FirstConv, IntegerConv2d, PixelMean, SumPool, ToFloat
from common.deploy.integer.thresholds import Thresholds
from common.errors import UserError
from common.quantizers.alignq import AlignAct, AlignWeight
from common.quantizers.layers import QuantConv2d


@dataclass(frozen=True)
class Codes:
    """Integers b with the real value unit * b, low <= b <= high."""

    unit: float
    low: int
    high: int


@dataclass(frozen=True)
class Sums:
    """Integers A with the real value scale * A + shift, per channel, float64."""

    scale: Tensor
    shift: Tensor


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
        self.layers: dict[str, nn.Module] = {}
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.meaning: dict[fx.Node, Meaning] = {}
        self.rules: dict[Any, Callable[[fx.Node], None]] = {
            QuantConv2d: self.convolution,
            nn.Conv2d: self.convolution,
            nn.BatchNorm2d: self.batch_norm,
            AlignAct: self.quantizer,
            **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), self.identity),
            **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu"), self.relu),
            **dict.fromkeys((operator.add, operator.iadd, torch.add), self.add),
            torch.cat: self.concatenate,
            **dict.fromkeys((nn.MaxPool2d, F.max_pool2d, torch.max_pool2d), self.max_pool),
            **dict.fromkeys((nn.AvgPool2d, F.avg_pool2d), self.average_pool),
            "mean": self.mean,
            nn.AdaptiveAvgPool2d: self.global_average,
            **dict.fromkeys(("flatten", torch.flatten), self.flatten),
        }

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            inputs = [self.meaning[one] for one in node.all_input_nodes]
            rule = self.rules.get(self.kind(node))
            if rule is not None and (any(inputs) or isinstance(self.layer(node), nn.Conv2d)):
                rule(node)
            elif any(inputs):
                raise UserError(f"{node.target}: no integer form is known for {self.kind(node)}")
            else:
                self.copy(node)
        return fx.GraphModule(self.layers, self.graph, "IntegerNetwork").eval()

    def layer(self, node: fx.Node) -> nn.Module | None:
        return self.source.get_submodule(str(node.target)) if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> Any:
        layer = self.layer(node)
        return node.target if layer is None else type(layer)

    def input(self, node: fx.Node) -> tuple[fx.Node, Meaning]:
        first = node.all_input_nodes[0]
        return self.new[first], self.meaning[first]

    def emit(self, node: fx.Node, layer: nn.Module, meaning: Meaning) -> None:
        """Apply ``layer`` in the place of ``node``, under a layer's own name where it has one."""
        name = str(node.target) if node.op == "call_module" else node.name
        self.layers[name] = layer
        self.new[node] = self.graph.call_module(name, (self.input(node)[0],))
        self.meaning[node] = meaning

    def copy(self, node: fx.Node, meaning: Meaning = None) -> None:
        if (layer := self.layer(node)) is not None:
            self.layers[str(node.target)] = layer
        self.new[node] = self.graph.node_copy(node, lambda one: self.new[one])
        self.meaning[node] = meaning

    def codes(self, node: fx.Node) -> Codes:
        meaning = self.input(node)[1]
        if not isinstance(meaning, Codes):
            what = "float values" if meaning is None else "sums that no quantizer follows (--abitW below 32 adds one)"
            raise UserError(f"{node.name}: acts on {what}, which have no integer form here")
        return meaning

    def sums(self, node: fx.Node) -> Sums:
        meaning = self.input(node)[1]
        if not isinstance(meaning, Sums):
            raise UserError(f"{node.target}: a quantizer or BatchNorm that no quantized convolution precedes")
        return meaning

    def identity(self, node: fx.Node) -> None:
        self.new[node], self.meaning[node] = self.input(node)

    def convolution(self, node: fx.Node) -> None:
        conv, meaning = self.layer(node), self.input(node)[1]
        assert isinstance(conv, nn.Conv2d)
        quantizer = getattr(conv, "weight_quantizer", None)
        exact = isinstance(quantizer, AlignWeight) and quantizer.grid is not None and quantizer.grid.offset > 0
        if not (isinstance(conv, QuantConv2d) and isinstance(quantizer, AlignWeight) and exact):
            raise UserError(
                f"{node.target}: the integer form exists for --method ours below 32 bits, --levels exact; this "
                f"convolution has {'float weights' if quantizer is None else quantizer}"
            )
        if conv.padding_mode != "zeros":
            raise UserError(f"{node.target}: padding by {conv.padding_mode} has no integer form here, only zeros")
        shift = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        if meaning is None:
            if any(isinstance(layer, FirstConv | IntegerConv2d) for layer in self.layers.values()):
                raise UserError(
                    f"{node.target}: a second convolution of float values; the integer form needs every activation "
                    "quantized (--abitW below 32; for ResNet-50 --quant_shortcut True)"
                )
            first = FirstConv(conv)
            self.emit(node, first, Sums(torch.full_like(shift, first.unit, dtype=torch.float64), shift.double()))
            return
        codes = self.codes(node)
        layer = IntegerConv2d(conv, codes.high, str(node.target))
        unit = codes.unit / (2**quantizer.bits - 1)
        self.emit(node, layer, Sums(torch.full_like(shift, unit, dtype=torch.float64), shift.double()))

    def batch_norm(self, node: fx.Node) -> None:
        bn, sums = self.layer(node), self.sums(node)
        assert isinstance(bn, nn.BatchNorm2d)
        scale, shift = batch_norm_scale_shift(bn)
        self.new[node] = self.input(node)[0]
        self.meaning[node] = Sums(sums.scale * scale, sums.shift * scale + shift)

    def quantizer(self, node: fx.Node) -> None:
        act, sums = self.layer(node), self.sums(node)
        assert isinstance(act, AlignAct)
        n = 2**act.bits - 1
        if act.grid is None or act.grid.offset == 0:
            raise UserError(f"{node.target}: the integer form needs --levels exact below 32 bits")
        try:
            thresholds = Thresholds(sums.scale, sums.shift, act.bits)
        except ValueError as error:
            raise UserError(f"{node.target}: {error}; is the file of a run that diverged?") from None
        self.emit(node, thresholds, Codes(act.act_range / n, -n, n))

    def relu(self, node: fx.Node) -> None:
        self.copy(node, replace(self.codes(node), low=0))

    def max_pool(self, node: fx.Node) -> None:
        self.copy(node, self.codes(node))

    def add(self, node: fx.Node) -> None:
        one, other = (self.meaning[term] for term in node.all_input_nodes)
        if not (isinstance(one, Codes) and isinstance(other, Codes) and one.unit == other.unit):
            raise UserError(
                f"{node.name}: adds values of which one is not quantized, or on another grid; the integer form needs "
                "both branches quantized alike (for ResNet-50 --quant_shortcut True)"
            )
        self.copy(node, Codes(one.unit, one.low + other.low, one.high + other.high))

    def concatenate(self, node: fx.Node) -> None:
        parts = [self.meaning[part] for part in node.all_input_nodes]
        sums = [part for part in parts if isinstance(part, Sums)]
        if len(sums) != len(parts):
            raise UserError(f"{node.name}: concatenates values that are not all sums of quantized convolutions")
        scale, shift = (torch.cat([getattr(part, name) for part in sums]) for name in ("scale", "shift"))
        self.copy(node, Sums(scale, shift))

    def average_pool(self, node: fx.Node) -> None:
        sums, layer = self.sums(node), self.layer(node)
        kernel = layer.kernel_size if isinstance(layer, nn.AvgPool2d) else node.args[1]
        if not isinstance(kernel, int) or node.kwargs or len(node.args) > 2:
            raise UserError(f"{node.name}: only square average pooling without padding has an integer form here")
        self.emit(node, SumPool(kernel), Sums(sums.scale / kernel**2, sums.shift))

    def mean(self, node: fx.Node) -> None:
        self.emit(node, PixelMean(self.codes(node).unit), None)

    def global_average(self, node: fx.Node) -> None:
        layer = self.layer(node)
        assert isinstance(layer, nn.AdaptiveAvgPool2d)
        if layer.output_size not in (1, (1, 1)):
            raise UserError(f"{node.target}: only adaptive average pooling to one pixel has an integer form here")
        self.mean(node)

    def flatten(self, node: fx.Node) -> None:
        self.emit(node, nn.Sequential(nn.Flatten(), ToFloat(self.codes(node).unit)), None)
