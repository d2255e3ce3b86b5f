"""The integer form of a quantized network: between its first and its last layer nothing but integers.

It exists for every method whose weights are integers times a scale and whose activations are integers times a unit
(``WeightQuantizer.integers``, ``QuantAct.integers``), where a quantizer follows every convolution's BatchNorm, behind a
ReLU or before it. Then a convolution is an exact integer sum, and BatchNorm, ReLU and quantizer are comparisons of that
sum with thresholds (``thresholds``). There is no erf, no division and no float; residual additions, maxima and
concatenations act on integers as they are. An average pooling is a sum, whose divisor the thresholds of its consumer
absorb, and each consumer of DenseNet's concatenated sums has thresholds of its own. A residual sum that is quantized as
a whole has no such form: its terms have scales of their own.

The first layer multiplies the float image; its sums leave as 32-bit fixed-point numbers. The last one begins with
the sum over the pixels, an integer still, that the linear layer's scale turns into floats, or with the real values of
sums that no quantizer follows.

Widths of "ours", whose weights are a / n and activations r b / n, n = 2^k - 1, with odd a and b of the form 2 c - n, or
b = 0 behind the ReLU:

- weights a in -n..n fit int8 up to 7 bits; at 8 bits (-255..255) they are a = 2 (c - 128) + 1, an int8 code and a sum
  of the inputs;
- inputs b in 0..n fit uint8, but a residual sum of m terms reaches m n: of ten terms in ResNet-56 (310 at 5 bits, past
  255), seven in ResNet-50 (217 at 5 bits, 441 at 6), four in ResNet-20 (252 at 6 bits, 508 at 7);
- sums fit int32, which is checked when the network is built.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from common.deploy.graph import batch_norm_scale_shift, refuse_unset, trace
from common.deploy.integer.layers import FirstConv, IntegerConv2d, PixelMean, Signed, SumPool, SumsToFloat, ToFloat
from common.deploy.integer.rewriting import FORM, Codes, GraphRewriter, Sums
from common.deploy.integer.thresholds import Thresholds
from common.deploy.operations import Operation
from common.quantizers.base import QuantAct, WeightQuantizer

CHANNELS = (1, -3)  # the dimension of the channels; every tensor of integers has four


def integer_network(network: nn.Module) -> fx.GraphModule:
    """The integer form of a quantized network; a module from (B, C, H, W) images to class logits.

    Layers keep the network's names: a quantizer's name is that of its ``Thresholds``.

    Raises:
        UserError: a float convolution or activation between first and last layer (32 bits, a residual sum quantized as
            a whole, ResNet-50 without --quant_shortcut True), levels that are no multiples of a unit, learned scales
            that were never set, or sums beyond 32 bits.
    """
    source = trace(network)
    refuse_unset(source.named_modules())
    return Rewriter(source).run()


class Rewriter(GraphRewriter):
    """What becomes of each kind of operation."""

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__(source)
        self.rules = {
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

    def identity(self, operation: Operation) -> None:
        self.new[operation.node], self.meaning[operation.node] = self.input(operation)

    def convolution(self, operation: Operation) -> None:
        conv, own = operation.layer, getattr(operation.layer, "input_quantizer", None)
        if conv.padding_mode != "zeros":
            raise operation.refuse(f"padding by {conv.padding_mode} has no integer form here, only zeros")
        weight, units = self.weight_integers(operation)
        shift = torch.zeros(conv.out_channels).double() if conv.bias is None else conv.bias.double()
        x, meaning = self.input(operation)
        if meaning is None:
            if any(isinstance(layer, FirstConv | IntegerConv2d) for layer in self.layers.values()):
                raise operation.refuse(
                    "a second convolution of float values; the integer form needs every activation "
                    "quantized (--abitW below 32; for ResNet-50 --quant_shortcut True)"
                )
            first = FirstConv(conv)
            self.emit(operation, first, Sums(torch.full_like(shift, first.unit), shift, first.bound))
            return
        if isinstance(own, QuantAct):
            x, codes = self.quantized(operation, own, f"{operation.name}.input_quantizer")
        else:
            codes = self.codes(operation)
        layer = IntegerConv2d(conv, weight, max(-codes.low, codes.high), operation.name)
        self.new[operation.node] = self.call(operation.name, layer, x, operation.node.name)
        self.meaning[operation.node] = Sums(codes.unit * units.expand_as(shift), shift, layer.bound)

    def weight_integers(self, operation: Operation) -> tuple[Tensor, Tensor]:
        conv, quantizer = operation.layer, getattr(operation.layer, "weight_quantizer", None)
        what, found = "float weights (--bitW below 32 quantizes them)", None
        if isinstance(quantizer, WeightQuantizer) and quantizer.has_codes:
            try:
                what, found = f"those of {quantizer}", quantizer.integers(conv.weight)
            except ValueError as error:
                raise operation.refuse(f"{error}; expected a network with finite weights") from None
        if found is None:
            raise operation.refuse(f"{FORM} needs weights that are integers times a scale; this convolution has {what}")
        return found

    def batch_norm(self, operation: Operation) -> None:
        sums = self.unrectified(operation)
        scale, shift = batch_norm_scale_shift(operation.layer)
        self.new[operation.node] = self.input(operation)[0]
        self.meaning[operation.node] = Sums(sums.scale * scale, sums.shift * scale + shift, sums.bound)

    def quantizer(self, operation: Operation) -> None:
        self.new[operation.node], self.meaning[operation.node] = self.quantized(
            operation, operation.layer, operation.name
        )

    def quantized(self, operation: Operation, act: QuantAct, name: str) -> tuple[fx.Node, Codes]:
        """The input of an operation, quantized under a name."""
        sums, found = self.sums(operation), act.integers() if act.has_codes else None
        if found is None:
            raise operation.refuse(f"{FORM} needs activations that are integers times a unit, unlike those of {act}")
        integers, unit = found
        try:
            thresholds = Thresholds(sums.scale, sums.shift, act, integers, sums.rectified)
        except ValueError as error:
            raise operation.refuse(f"{error}; is the file of a run that diverged?") from None
        node = self.call(name, thresholds, self.input(operation)[0], f"{operation.node.name}_quantizer")
        return node, Codes(unit, int(integers[0]), int(integers[-1]))

    def relu(self, operation: Operation) -> None:
        x, meaning = self.input(operation)
        if isinstance(meaning, Sums):  # waits for the quantizer behind it
            self.new[operation.node], self.meaning[operation.node] = x, replace(meaning, rectified=True)
            return
        codes = self.codes(operation)
        self.copy(operation, replace(codes, low=max(codes.low, 0)))

    def max_pool(self, operation: Operation) -> None:
        operation.require(FORM, return_indices=False)
        x, sums = self.input(operation)
        if not isinstance(sums, Sums):
            self.copy(operation, self.codes(operation))
            return
        if bool((sums.scale < 0).any()):
            x = self.call(f"{operation.node.name}_signed", Signed(sums.scale), x, f"{operation.node.name}_signed")
        self.copy(operation, replace(sums, scale=sums.scale.abs()), x)

    def add(self, operation: Operation) -> None:
        operation.require(FORM, alpha=1)
        one, other = (self.meaning.get(term) for term in operation.inputs)
        if not (isinstance(one, Codes) and isinstance(other, Codes) and one.unit == other.unit):
            raise operation.refuse(
                "adds values of which one is not quantized, or on another grid; the integer form needs both branches "
                "quantized alike before the sum (as --method ours does; for ResNet-50 --quant_shortcut True)"
            )
        self.copy(operation, Codes(one.unit, one.low + other.low, one.high + other.high))

    def concatenate(self, operation: Operation) -> None:
        parts = [self.meaning[part] for part in operation.inputs]
        sums = [part for part in parts if isinstance(part, Sums)]
        codes = [part for part in parts if isinstance(part, Codes)]
        if len(codes) == len(parts) and len({part.unit for part in codes}) == 1:
            low, high = min(part.low for part in codes), max(part.high for part in codes)
            self.copy(operation, Codes(codes[0].unit, low, high))
            return
        if len(sums) != len(parts) or len({part.rectified for part in sums}) > 1:
            raise operation.refuse(
                "concatenates values that are not all sums of quantized convolutions, or on one grid"
            )
        if operation.options["dim"] not in CHANNELS:
            operation.require(FORM, dim=1)
        scale, shift = (torch.cat([getattr(part, name) for part in sums]) for name in ("scale", "shift"))
        self.copy(operation, Sums(scale, shift, max(part.bound for part in sums), sums[0].rectified))

    def average_pool(self, operation: Operation) -> None:
        sums, kernel = self.unrectified(operation), operation.pair("kernel_size")
        operation.require(FORM, padding=0, ceil_mode=False, divisor_override=None)
        pool = SumPool(kernel, operation.pair("stride"), sums.bound, operation.name)
        self.emit(operation, pool, Sums(sums.scale / math.prod(kernel), sums.shift, pool.bound))

    def ends_in_float(self, operation: Operation) -> bool:
        """Whether an operation of the last layer met sums; it then computes their real values."""
        x, sums = self.input(operation)
        if not isinstance(sums, Sums):
            return False
        name = f"{operation.node.name}_values"
        values = self.call(name, SumsToFloat(sums.scale, sums.shift, sums.rectified), x, name)
        self.copy(operation, None, values)
        return True

    def mean(self, operation: Operation) -> None:
        if self.ends_in_float(operation):
            return
        operation.require(FORM, dtype=None)
        dims = operation.options["dim"]
        if not isinstance(dims, tuple | list) or sorted(dim % 4 for dim in dims) != [2, 3]:
            raise operation.refuse(f"{FORM} knows the mean over rows and columns, not over dimensions {dims}")
        mean = PixelMean(self.codes(operation).unit, operation.options["keepdim"])
        self.emit(operation, mean, None)

    def global_average(self, operation: Operation) -> None:
        if self.ends_in_float(operation):
            return
        operation.require(FORM, output_size=1)
        self.emit(operation, PixelMean(self.codes(operation).unit, keepdim=True), None)

    def flatten(self, operation: Operation) -> None:
        if self.ends_in_float(operation):
            return
        operation.require(FORM, start_dim=1, end_dim=-1)
        self.emit(operation, nn.Sequential(nn.Flatten(), ToFloat(self.codes(operation).unit)), None)
