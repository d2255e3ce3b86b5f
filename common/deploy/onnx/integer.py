"""The integer graph as ONNX: every convolution and Linear layer of quantized values and weights multiplies bytes.

A byte is written as engines know it, QuantizeLinear and DequantizeLinear before the product (QDQ). Between the
products values are float32; where they are quantized, they are the integers themselves, so that no rounding comes
from their scale, which the weights carry. Residual sums, maxima and ReLUs act on integers as they are. What has no
integers (a first layer, a float Linear one, levels that are no multiples of a unit) is computed from real values.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy.integer.rewriting import Codes
from common.deploy.onnx.epilogue import byte_type, requantize, write_integers
from common.deploy.onnx.operators import SHAPED
from common.deploy.onnx.quantizers import write_weight
from common.deploy.onnx.writer import Bound, NetworkWriter
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.layers import QuantLayer

BYTE = 256
LEAST = float(torch.finfo(torch.float32).min)
MOVED = SHAPED - {"expand"} | {"permute", "transpose", "slice", "select", "split", "split_with_sizes", "chunk"}
POOLED = {"max_pool2d", "max_pool2d_with_indices"}


class IntegerWriter(NetworkWriter):
    """A ``NetworkWriter`` that knows which values are integers.

    Attributes:
        meaning: of the values that hold integers, by name; the others hold real values.
    """

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.meaning: dict[str, Codes] = {}
        self.reals: dict[str, str] = {}
        self.layers: dict[str, tuple[QuantLayer, str]] = {}
        self.in_bytes: dict[str, tuple[str, int]] = {}
        self.window_sums: dict[tuple[Any, ...], str] = {}
        super().__init__(network, image_shape)

    def quantizer(self, act: QuantAct, name: str, value: str) -> str:
        value = self.real(value)
        if not act.has_codes or (found := act.shifted_integers()) is None:
            return super().quantizer(act, name, value)
        integers, unit, offset = found
        self.meaning[name] = Codes(unit, int(integers[0]), int(integers[-1]), offset)
        return write_integers(self, act, integers, name, value)

    def weight(self, layer: QuantLayer, name: str) -> str:
        """Stands for a weight that is written when it is known in what form."""
        self.layers[f"{name}:weight"] = layer, name
        return f"{name}:weight"

    def real(self, value: str) -> str:
        """The real values of what may be integers, or a weight."""
        if value in self.layers and value not in self.reals:
            self.reals[value] = write_weight(self, *self.layers[value])
        elif value in self.meaning and value not in self.reals:
            codes = self.meaning[value]
            shift = [("offset", "Add", (codes.offset,))] if codes.offset else []
            self.reals[value] = self.chain(f"{value}.real", value, ("unit", "Mul", (codes.unit,)), *shift)
        return self.reals.get(value, value)

    def operator(self, call: Bound) -> str | list[str]:
        products = {"convolution": self.convolution, "linear": self.linear}
        if call.operator in products and (product := products[call.operator](call)) is not None:
            return product
        if (codes := self.result(call)) is None:
            tensors = [key for key in call.given if key in call.sizes or key == "tensors"]
            given = {key: self._reals(call.given[key]) for key in tensors}
            return super().operator(replace(call, given=call.given | given))
        if call.operator in POOLED:
            value, base = self.bytes_of(call.given["self"])
            if base == 1:  # four times less to move
                self.in_bytes[call.name] = call.name, 1
                call = replace(call, given=call.given | {"self": value})
        if call.operator == "hardtanh":
            call = replace(call, operator="relu")
        written = super().operator(call)
        self.meaning |= dict.fromkeys([written] if isinstance(written, str) else written, codes)
        return written

    def _reals(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._reals(one) for one in value]
        return self.real(value) if isinstance(value, str) else value

    def result(self, call: Bound) -> Codes | None:
        """What integers an operator gives of integers; None: it acts on real values."""
        given = call.given
        values = (
            given["tensors"] if call.operator == "cat" else [given[key] for key in ("self", "other") if key in given]
        )
        found = [self.meaning[one] for one in values if isinstance(one, str) and one in self.meaning]
        if not found or len(found) < len(values) or len({one.unit for one in found}) > 1 or found[0].offset:
            return None
        unit, low, high = found[0].unit, min(one.low for one in found), max(one.high for one in found)
        if call.operator in MOVED | POOLED or call.operator == "cat":
            return Codes(unit, low, high)
        passes = call.operator == "hardtanh" and given["min_val"] == 0 and high * unit <= given["max_val"]
        if call.operator == "relu" or passes:
            return Codes(unit, max(low, 0), max(high, 0))
        if call.operator == "add" and given.get("alpha", 1) == 1:
            return Codes(unit, sum(one.low for one in found), sum(one.high for one in found))
        return None

    def convolution(self, call: Bound) -> str | None:
        """In bytes where input and weights are integers, of at most two bytes each; otherwise of real values."""
        given, name = call.given, call.name
        codes, (layer, _) = self.meaning.get(given["input"]), self.layers.get(given["weight"], (None, ""))
        if layer is None or codes is None or codes.offset or given["transposed"] or len(given["padding"]) != 2:
            return None
        parts = weights_in_bytes(layer)
        if parts is None or not within_two_bytes(codes):
            return None
        x, base = self.bytes_of(given["input"])
        bias, among = given["bias"], [] if base != 1 or given["bias"] is None else [given["bias"]]
        terms = [self.product(x, *parts[0], codes.unit, among, call, f"{name}.product")]
        terms += [self.product(x, *part, codes.unit, [], call, f"{name}.odd") for part in parts[1:]]
        total = terms[0] if len(terms) == 1 else self.sum(terms, f"{name}.products")
        if base != 1:
            low, high = f"{name}.low", f"{name}.high"
            self.add_several("Split", [total], [low, high], axis=0, num_outputs=2)
            total = self.sum([low, self.chain(f"{name}.worth", high, ("base", "Mul", (base,)))], f"{name}.sum")
            if bias is not None:
                by_channel = self.add("Unsqueeze", [bias, self.integers(f"{name}:axes", [1, 2])], f"{name}.bias.shaped")
                total = self.add("Add", [total, by_channel], f"{name}.biased")
        return self.add("Identity", [total], name)

    def linear(self, call: Bound) -> str | None:
        """In bytes where input and weights are; what an offset of the input adds is of every output channel's bias."""
        given, name = call.given, call.name
        codes, (layer, _) = self.meaning.get(given["input"]), self.layers.get(given["weight"], (None, ""))
        if layer is None or codes is None or byte_type(codes.low, codes.high) is None:
            return None
        if (parts := weights_in_bytes(layer)) is None:
            return None
        x, _ = self.bytes_of(given["input"])
        terms, shift = [], torch.zeros(len(layer.weight)).double()
        for place, (weights, scale) in enumerate(parts):
            output = f"{name}.product{place}"
            stored = self.bytewise(f"{output}.codes", weights.T.contiguous(), "INT8")
            by_filter = (scale * codes.unit).expand(len(weights))
            terms.append(
                self.add("MatMul", [x, self.dequantize(stored, "INT8", f"{output}.weight", by_filter, 1)], output)
            )
            shift = shift + codes.offset * scale * weights.sum(1)
        total = terms[0] if len(terms) == 1 else self.sum(terms, f"{name}.products")
        constants = [] if given["bias"] is None else [given["bias"]]
        constants += [self.floats(f"{name}:shift", shift)] if codes.offset else []
        for place, constant in enumerate(constants):
            total = self.add("Add", [total, constant], f"{name}.plus{place}")
        return self.add("Identity", [total], name)

    def sum(self, terms: list[str], name: str) -> str:
        """Of two products. OpenVINO moves scales from before an addition behind it, and where a term has other readers
        (the convolutions of a branch and of a shortcut) it applies them twice; past a maximum it moves none."""
        return self.add("Add", [self.chain(f"{term}.as_is", term, ("least", "Max", (LEAST,))) for term in terms], name)

    def product(
        self, x: str, weights: Tensor, scale: Tensor, unit: float, bias: list[str], call: Bound, name: str
    ) -> str:
        """The convolution of bytes with bytes, times scale * unit, scale (1,) or (filters,).

        Sums of the inputs under a kernel serve all convolutions of the same input.
        """
        geometry, scale = geometry_of(call), scale * unit
        if not bias and bool((weights == 1).all()):
            key = (x, tuple(weights.shape), str(geometry))
            if key not in self.window_sums:
                ones = self.dequantize(self.bytewise(f"{name}:ones", weights, "INT8"), "INT8", f"{name}.ones")
                self.window_sums[key] = self.add("Conv", [x, ones], f"{name}.sums", **geometry)
            return self.chain(name, self.window_sums[key], ("scaled", "Mul", (scale.view(-1, 1, 1),)))
        stored = self.bytewise(f"{name}.codes", weights, "INT8")
        read = self.dequantize(stored, "INT8", f"{name}.weight", scale.expand(len(weights)))
        return self.add("Conv", [x, read, *bias], name, **geometry)

    def bytes_of(self, value: str) -> tuple[str, int]:
        """The integers of a tensor as one that an engine keeps in bytes, and its base.

        Base 1: the integers themselves. Otherwise the batch has twice the images: the integers modulo the base, and
        then how often the base goes into them. So both meet the same weights in one convolution.
        """
        if value not in self.in_bytes:
            codes = self.meaning[value]
            if kind := byte_type(codes.low, codes.high):
                self.in_bytes[value] = requantize(self, value, kind, f"{value}.byte"), 1
            else:
                kind, base = ("INT8", BYTE // 2) if codes.low < 0 else ("UINT8", BYTE)
                high = self.chain(f"{value}.high", value, ("share", "Mul", (1 / base,)), ("whole", "Floor", ()))
                multiple = self.chain(f"{value}.multiple", high, ("base", "Mul", (base,)))
                low = self.add("Sub", [value, multiple], f"{value}.low")
                parts = [requantize(self, part, kind, f"{part}_byte") for part in (low, high)]
                self.in_bytes[value] = self.add("Concat", parts, f"{value}.bytes", axis=0), base
        return self.in_bytes[value]


def geometry_of(call: Bound) -> dict[str, Any]:
    """The attributes of a convolution over rows and columns."""
    given = call.given
    return {
        "kernel_shape": call.sizes["weight"][2:],
        "strides": given["stride"],
        "pads": [*given["padding"], *given["padding"]],
        "dilations": given["dilation"],
        "group": given["groups"],
    }


def within_two_bytes(codes: Codes) -> bool:
    """As ``bytes_of`` takes them apart."""
    return codes.high < BYTE**2 if codes.low >= 0 else max(-codes.low, codes.high + 1) <= BYTE**2 // 4


def weights_in_bytes(layer: Any) -> list[tuple[Tensor, Tensor]] | None:
    """The weights as a sum of bytes times scales of (1,) or (filters,), float64. None: they are nothing of the kind.

    Weights of 8 bits may be -255..255. They are 2 v + w with bytes v, and w in {0, 1}; where w is 1 throughout, as with
    "ours", one filter of ones does for all: the sum of the inputs under it.
    """
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, WeightQuantizer) or not quantizer.has_codes:
        return None
    if (found := quantizer.integers(layer.weight)) is None:
        return None
    weights, scale = found
    if byte_type(min(int(weights.min()), -1), int(weights.max())):
        return [(weights, scale)]
    half, rest = weights.div(2, rounding_mode="floor"), weights % 2
    if not byte_type(min(int(half.min()), -1), int(half.max())):
        return None
    if bool(rest.all()) and getattr(layer, "groups", 0) == 1:
        rest = rest[:1]
    return [(half, 2 * scale), (rest, scale)]
