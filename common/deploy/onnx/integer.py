"""The integer graph as ONNX: every convolution of quantized values with quantized weights multiplies bytes.

A byte is written as engines know it, QuantizeLinear and DequantizeLinear around the convolution (QDQ). Between the
convolutions values are float32; where they are quantized, they are the integers themselves, so that no rounding comes
from their scale, which the weights carry. Residual sums, maxima and ReLUs act on integers as they are.
"""

from typing import Any

import torch
from torch import Tensor, fx

from common.deploy.integer.rewriting import Codes
from common.deploy.onnx.epilogue import byte_type, requantize, write_integers
from common.deploy.onnx.graph import GraphWriter
from common.deploy.onnx.quantizers import write_activation
from common.deploy.operations import Operation
from common.quantizers.layers import QuantAct, WeightQuantizer

BYTE = 256
LEAST = float(torch.finfo(torch.float32).min)


class IntegerWriter(GraphWriter):
    """A ``GraphWriter`` that knows what integers mean.

    Attributes:
        meaning: of the nodes whose tensor holds integers; the others hold real values.
    """

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__(source)
        self.meaning: dict[fx.Node, Codes] = {}
        self.reals: dict[fx.Node, str] = {}
        self.in_bytes: dict[str, tuple[str, int]] = {}
        self.window_sums: dict[str, str] = {}
        self.rules |= {
            "quantizer": self.quantizer,
            "identity": self.same,
            "relu": self.relu,
            "max_pool": self.max_pool,
            "add": self.addition,
            "concatenate": self.concatenate,
        }

    def inputs(self, operation: Operation) -> list[str]:
        """Integers where the output has a meaning as such, else real values."""
        names = super().inputs(operation)
        if operation.node in self.meaning:
            return names
        return [
            self.real(one, name) if one in self.meaning else name
            for one, name in zip(operation.inputs, names, strict=True)
        ]

    def real(self, node: fx.Node, name: str) -> str:
        if node not in self.reals:
            self.reals[node] = self.chain(f"{name}.real", name, ("unit", "Mul", (self.meaning[node].unit,)))
        return self.reals[node]

    def common_codes(self, operation: Operation) -> list[Codes] | None:
        """What the inputs mean, if all are integers of one unit."""
        found = [self.meaning[one] for one in operation.inputs if one in self.meaning]
        alike = len(found) == len(operation.inputs) and len({one.unit for one in found}) == 1
        return found if alike else None

    def quantizer(self, operation: Operation, name: str) -> str:
        return self.quantized(operation, operation.layer, name) or write_activation(
            self, operation.layer, name, self.inputs(operation)[0]
        )

    def quantized(self, operation: Operation, act: QuantAct, name: str) -> str | None:
        """The integers of the input under a quantizer's name; None: its levels are no multiples of a unit."""
        if not act.has_codes or (found := act.integers()) is None:
            return None
        (value,), (integers, unit) = self.inputs(operation), found
        self.meaning[operation.node] = Codes(unit, int(integers[0]), int(integers[-1]))
        return write_integers(self, act, integers, name, value)

    def same(self, operation: Operation, name: str) -> str:
        if codes := self.common_codes(operation):
            self.meaning[operation.node] = codes[0]
        return self.inputs(operation)[0]

    def relu(self, operation: Operation, name: str) -> str:
        if codes := self.common_codes(operation):
            self.meaning[operation.node] = Codes(codes[0].unit, max(codes[0].low, 0), max(codes[0].high, 0))
        return self.plain("Relu", operation, name)

    def max_pool(self, operation: Operation, name: str) -> str:
        """Of bytes, where the integers are such: four times less to move."""
        (codes,) = self.common_codes(operation) or (None,)
        if codes is None:
            return super().max_pool(operation, name)
        self.meaning[operation.node], (source,) = codes, operation.inputs
        value, base = self.bytes_of(self.names[source], codes)
        if base == 1:
            self.in_bytes[name] = name, 1
            self.names[source] = value
        return super().max_pool(operation, name)

    def addition(self, operation: Operation, name: str) -> str:
        if codes := self.common_codes(operation):
            low, high = (sum(getattr(one, end) for one in codes) for end in ("low", "high"))
            self.meaning[operation.node] = Codes(codes[0].unit, low, high)
        return super().addition(operation, name)

    def concatenate(self, operation: Operation, name: str) -> str:
        if codes := self.common_codes(operation):
            low, high = min(one.low for one in codes), max(one.high for one in codes)
            self.meaning[operation.node] = Codes(codes[0].unit, low, high)
        return self.plain("Concat", operation, name, axis=operation.options["dim"])

    def convolution(self, operation: Operation, name: str) -> str:
        """In bytes where input and weights are integers, at most two bytes each; otherwise of real values."""
        conv, own = operation.layer, getattr(operation.layer, "input_quantizer", None)
        parts = weights_in_bytes(conv)
        if parts is None or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return super().convolution(operation, name)
        value: str | None
        if isinstance(own, QuantAct):
            value = self.quantized(operation, own, f"{name}.input_quantizer")
            codes = self.meaning.pop(operation.node, None)
        else:
            codes, value = self.meaning.get(operation.inputs[0]), self.names[operation.inputs[0]]
        if value is None or codes is None or not within_two_bytes(codes):
            return super().convolution(operation, name)
        x, base = self.bytes_of(value, codes)
        terms = [
            self.product(x, weights, scale * codes.unit, conv, f"{name}.term{place}")
            for place, (weights, scale) in enumerate(parts)
        ]
        total = terms[0] if len(terms) == 1 else self.sum(terms, f"{name}.terms")
        if base != 1:
            low, high = halves = [f"{name}.low", f"{name}.high"]
            self.nodes.append(self.helper.make_node("Split", [total], halves, axis=0, num_outputs=2))
            total = self.sum([low, self.chain(f"{name}.worth", high, ("base", "Mul", (base,)))], f"{name}.sum")
        if conv.bias is not None:
            return self.chain(name, total, ("bias", "Add", (conv.bias.view(-1, 1, 1),)))
        return self.add("Identity", [total], name)

    def sum(self, terms: list[str], name: str) -> str:
        """Of two products. OpenVINO moves scales from before an addition behind it, and where a term has other readers
        (a shortcut's convolution and a branch's) it applies them twice; past a maximum it moves none."""
        terms = [self.chain(f"{term}.as_is", term, ("least", "Max", (LEAST,))) for term in terms]
        return self.add("Add", terms, name)

    def product(self, x: str, weights: Tensor, scale: Tensor, conv: Any, name: str) -> str:
        """The convolution of bytes with bytes, times a scale of (1,) or (filters,).

        Sums of the inputs under a kernel serve all convolutions of the same input: OpenVINO would share them by itself,
        and then apply the scale of shared weights twice.
        """
        geometry = {"strides": conv.stride, "pads": conv.padding * 2, "dilations": conv.dilation, "group": conv.groups}
        if bool((weights == 1).all()):
            key = f"{x}.sums{conv.kernel_size}{geometry}"
            if key not in self.window_sums:
                ones = self.dequantize(
                    self.bytewise(f"{key}:ones", weights, "INT8"), "INT8", f"{key}.ones", torch.ones(len(weights))
                )
                self.window_sums[key] = self.add("Conv", [x, ones], key, kernel_shape=conv.kernel_size, **geometry)
            return self.chain(name, self.window_sums[key], ("scaled", "Mul", (scale.view(-1, 1, 1),)))
        stored = self.bytewise(f"{name}.codes", weights, "INT8")
        read = self.dequantize(stored, "INT8", f"{name}.weight", scale.expand(len(weights)))
        return self.add("Conv", [x, read], name, kernel_shape=conv.kernel_size, **geometry)

    def bytes_of(self, value: str, codes: Codes) -> tuple[str, int]:
        """The integers of a tensor as one that an engine keeps in bytes, and its base.

        Base 1: the integers themselves. Otherwise the batch has twice the images: the integers modulo the base, and
        then how often the base goes into them. So both meet the same weights in one convolution.
        """
        if value not in self.in_bytes:
            if kind := byte_type(codes.low, codes.high):
                self.in_bytes[value] = requantize(self, value, kind, f"{value}.byte"), 1
            else:
                kind, base = ("INT8", BYTE // 2) if codes.low < 0 else ("UINT8", BYTE)
                high = self.chain(f"{value}.high", value, ("share", "Mul", (1 / base,)), ("whole", "Floor", ()))
                low = self.add(
                    "Sub", [value, self.chain(f"{value}.of", high, ("base", "Mul", (base,)))], f"{value}.low"
                )
                parts = [requantize(self, part, kind, f"{part}_byte") for part in (low, high)]
                self.in_bytes[value] = self.add("Concat", parts, f"{value}.bytes", axis=0), base
        return self.in_bytes[value]


def within_two_bytes(codes: Codes) -> bool:
    return codes.low >= -(2**14) and codes.high < (2**16 if codes.low >= 0 else 2**14)


def weights_in_bytes(conv: Any) -> list[tuple[Tensor, Tensor]] | None:
    """The weights as a sum of bytes times scales of (1,) or (filters,), float64. None: they are nothing of the kind.

    Weights of 8 bits may be -255..255. They are 2 v + w with bytes v, and w in {0, 1}; where w is 1 throughout, as with
    "ours", one filter of ones does for all: the sum of the inputs under it.
    """
    quantizer = getattr(conv, "weight_quantizer", None)
    if not isinstance(quantizer, WeightQuantizer) or not quantizer.has_codes:
        return None
    if (found := quantizer.integers(conv.weight)) is None:
        return None
    weights, scale = found
    low, high = int(weights.min()), int(weights.max())
    if byte_type(min(low, -1), high):
        return [(weights, scale)]
    half, rest = weights.div(2, rounding_mode="floor"), weights % 2
    if not byte_type(min(int(half.min()), -1), int(half.max())):
        return None
    if bool(rest.all()) and conv.groups == 1 and len(scale) == 1:
        rest = rest[:1]
    return [(half, 2 * scale), (rest, scale)]
