"""The integer graph as ONNX: every convolution of quantized values with quantized weights multiplies bytes.

A byte is written as engines know it, QuantizeLinear and DequantizeLinear around the convolution (QDQ). Between the
convolutions values are float32; where they are quantized, they are the integers themselves, so that no rounding comes
from their scale, which the weights carry. Residual sums, maxima and ReLUs act on integers as they are.
"""

from typing import Any

from torch import Tensor, fx

from common.deploy.integer.rewriting import Codes
from common.deploy.onnx.epilogue import byte_type, requantize, write_integers
from common.deploy.onnx.graph import GraphWriter
from common.deploy.onnx.quantizers import write_activation
from common.deploy.operations import Operation
from common.quantizers.layers import QuantAct, WeightQuantizer

BYTE = 256


class IntegerWriter(GraphWriter):
    """A ``GraphWriter`` that knows what integers mean.

    Attributes:
        meaning: of the nodes whose tensor holds integers; the others hold real values.
    """

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__(source)
        self.meaning: dict[fx.Node, Codes] = {}
        self.reals: dict[fx.Node, str] = {}
        self.in_bytes: dict[str, list[tuple[str, int]]] = {}
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
        if codes := self.common_codes(operation):
            self.meaning[operation.node] = codes[0]
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
        if value is None or codes is None or not -(BYTE**2) // 2 <= codes.low <= codes.high < BYTE**2 // 2:
            return super().convolution(operation, name)
        bias = [] if conv.bias is None else [self.floats(f"{name}.bias", conv.bias)]
        geometry = {"strides": conv.stride, "pads": conv.padding * 2, "dilations": conv.dilation, "group": conv.groups}
        total = ""
        for number, (one, worth) in enumerate(self.bytes_of(value, codes)):
            for place, (weights, scale) in enumerate(parts):
                term = f"{name}.term{number}{place}"
                stored = self.bytewise(f"{term}.codes", weights, "INT8")
                read = self.dequantize(
                    stored, "INT8", f"{term}.weight", (scale * codes.unit * worth).expand(len(weights))
                )
                part = self.add("Conv", [one, read, *bias], term, kernel_shape=conv.kernel_size, **geometry)
                total, bias = self.add("Add", [total, part], f"{term}.sum") if total else part, []
        return self.add("Identity", [total], name)

    def bytes_of(self, value: str, codes: Codes) -> list[tuple[str, int]]:
        """The integers of a tensor as bytes: tensors that an engine keeps as such, and what one of them is worth."""
        if value not in self.in_bytes:
            if kind := byte_type(codes.low, codes.high):
                self.in_bytes[value] = [(requantize(self, value, kind, f"{value}.byte"), 1)]
            else:
                share = self.chain(f"{value}.high", value, ("share", "Mul", (1 / BYTE,)), ("whole", "Floor", ()))
                low = self.add(
                    "Sub", [value, self.chain(f"{value}.of", share, ("256", "Mul", (BYTE,)))], f"{value}.low"
                )
                kind = byte_type(codes.low // BYTE, codes.high // BYTE)
                assert kind is not None
                high = requantize(self, share, kind, f"{value}.high_byte")
                self.in_bytes[value] = [(requantize(self, low, "UINT8", f"{value}.low_byte"), 1), (high, BYTE)]
        return self.in_bytes[value]


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
