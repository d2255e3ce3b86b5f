"""The integer graph as QONNX: products of integers, and quantizers that count passed thresholds (MultiThreshold).

What follows a product is not computed but kept as a scale and a shift of every channel, until a quantizer takes them
into its thresholds: convolution, BatchNorm, ReLU and quantizer are one convolution and one MultiThreshold, as in
common.deploy.integer. Where something else reads it (a residual sum that is quantized as a whole) the real values are
written. Integers are float32 in the file, as QONNX has them, and annotated with their type.

MultiThreshold (https://github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops): out_scale * (number of thresholds
that are at most x) + out_bias. Levels that are not even, as those of ``centroid``, repeat a threshold once for every
integer that it skips.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from common.deploy.extras import need
from common.deploy.integer.rewriting import Codes
from common.deploy.integer.thresholds import behind_relu, integer_thresholds
from common.deploy.onnx.integer import IntegerWriter, geometry_of
from common.deploy.onnx.writer import Bound
from common.quantizers.base import QuantAct, WeightQuantizer

DOMAIN = "qonnx.custom_op.general"
MOST = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class Scaled:
    """A value that is not written: scale * source + shift by channel, or 0 where that is negative and ``rectified``.

    Attributes:
        source: the name of what is. scale, shift: float64, (C,) or (C, 1, 1), to multiply the source with.
        whole: whether the source holds integers.
    """

    source: str
    scale: Tensor
    shift: Tensor
    whole: bool
    rectified: bool = False


class MultiThresholdWriter(IntegerWriter):
    """
    Attributes:
        scaled: what is not written of the values, by name.
    """

    def __init__(self, network: Any, image_shape: tuple[int, int, int]) -> None:
        self.scaled: dict[str, Scaled] = {}
        super().__init__(network, image_shape)

    def real(self, value: str) -> str:
        if value in self.reals:
            return self.reals[value]
        if value in self.layers:
            layer, name = self.layers[value]
            self.reals[value] = self.floats(f"{name}.weight", layer.shared)
        elif value in self.scaled:
            kept = self.scaled[value]
            relu: list[Any] = [("relu", "Relu", ())] if kept.rectified else []
            steps = ("scale", "Mul", (kept.scale,)), ("shift", "Add", (kept.shift,))
            self.reals[value] = self.chain(value, kept.source, *steps, *relu)
        return super().real(value)

    def operator(self, call: Bound) -> str | list[str]:
        rules = {"batch_norm": self.batch_norm, "relu": self.relu, "cat": self.concatenate}
        if call.operator in rules and (kept := rules[call.operator](call)) is not None:
            self.scaled[call.name] = kept
            return call.name
        return super().operator(call)

    def bytes_of(self, value: str) -> tuple[str, int]:
        return value, 1

    def convolution(self, call: Bound) -> str | None:
        given, found = call.given, self._integers(call)
        if found is None or given["transposed"] or len(given["padding"]) != 2:
            return None
        weights, scale, codes = found
        if codes is not None and codes.offset:
            return None
        x = self.real(given["input"]) if codes is None else given["input"]
        stored = self._annotated(f"{call.name}.integers", weights)
        source = self.add("Conv", [x, stored], f"{call.name}.sums", **geometry_of(call))
        shift = torch.zeros(len(weights)) if given["bias"] is None else self._constant_of(given["bias"])
        scale = (scale * (1 if codes is None else codes.unit)).expand(len(weights))
        self.scaled[call.name] = Scaled(source, scale.view(-1, 1, 1), shift.view(-1, 1, 1), codes is not None)
        return call.name

    def linear(self, call: Bound) -> str | None:
        given, found = call.given, self._integers(call)
        if found is None or (codes := found[2]) is None:
            return None
        weights, scale, _ = found
        stored = self._annotated(f"{call.name}.integers", weights.T.contiguous())
        source = self.add("MatMul", [given["input"], stored], f"{call.name}.sums")
        shift = codes.offset * scale * weights.sum(1)
        if given["bias"] is not None:
            shift = shift + self._constant_of(given["bias"])
        return self.chain(call.name, source, ("scale", "Mul", (scale * codes.unit,)), ("shift", "Add", (shift,)))

    def batch_norm(self, call: Bound) -> Scaled | None:
        """Of real values too: per channel, they are thresholds of their own."""
        given, names = call.given, ("weight", "bias", "running_mean", "running_var")
        if given["training"] or given["input"] in self.meaning:
            return None
        weight, bias, mean, variance = (None if given[one] is None else self._constant_of(given[one]) for one in names)
        assert mean is not None
        assert variance is not None
        shape = (-1, *[1] * (len(call.results[0]) - 2))
        scale = torch.rsqrt(variance + given["eps"]) * (1 if weight is None else weight)
        shift = ((0 if bias is None else bias) - mean * scale).view(shape)
        scale, before = scale.view(shape), self.scaled.get(given["input"])
        if before is None or before.rectified:
            return Scaled(self.real(given["input"]), scale, shift, whole=False)
        return replace(before, scale=before.scale * scale, shift=before.shift * scale + shift)

    def relu(self, call: Bound) -> Scaled | None:
        before = self.scaled.get(call.given["self"])
        return None if before is None else replace(before, rectified=True)

    def concatenate(self, call: Bound) -> Scaled | None:
        """DenseNet's sums, which every BatchNorm that reads them scales anew."""
        parts = [self.scaled[one] for one in call.given["tensors"] if one in self.scaled]
        if len(parts) < len(call.given["tensors"]) or any(part.rectified for part in parts) or call.given["dim"] != 1:
            return None
        source = self.add("Concat", [part.source for part in parts], f"{call.name}.sums", axis=1)
        scale, shift = (torch.cat([getattr(part, name) for part in parts]) for name in ("scale", "shift"))
        return Scaled(source, scale, shift, all(part.whole for part in parts))

    def quantizer(self, act: QuantAct, name: str, value: str) -> str:
        if not act.has_codes or (found := act.shifted_integers()) is None:
            return super().quantizer(act, name, value)
        integers, unit, offset = found
        low, high = int(integers[0]), int(integers[-1])
        kept = self.scaled.get(value) or Scaled(self.real(value), torch.ones(1), torch.zeros(1), whole=False)
        steps, tie_passes = act.thresholds()
        if kept.rectified:
            steps = behind_relu(steps, tie_passes)
        find = integer_thresholds if kept.whole else float_thresholds
        thresholds, sign = find(kept.scale.flatten(), kept.shift.flatten(), steps, tie_passes)
        source = kept.source
        if bool((sign < 0).any()):
            source = self.chain(f"{name}.ascending", source, ("sign", "Mul", (sign.view(kept.scale.shape),)))
        step = math.gcd(*integers.diff().tolist())
        table = self.floats(f"{name}:thresholds", thresholds.repeat_interleave(integers.diff() // step, dim=1))
        self.meaning[name] = Codes(unit, low, high, offset)
        attributes = {"out_dtype": integer_type(low, high), "out_scale": float(step), "out_bias": float(low)}
        return self.add("MultiThreshold", [source, table], name, domain=DOMAIN, **attributes)

    def _integers(self, call: Bound) -> tuple[Tensor, Tensor, Codes | None] | None:
        """The weights of a layer as integers, their scales, and what the integers of its input mean."""
        layer: Any = self.layers.get(call.given["weight"], (None, ""))[0]
        quantizer = getattr(layer, "weight_quantizer", None)
        if not isinstance(quantizer, WeightQuantizer) or not quantizer.has_codes:
            return None
        found = quantizer.integers(layer.weight)
        return None if found is None else (*found, self.meaning.get(call.given["input"]))

    def _annotated(self, name: str, weights: Tensor) -> str:
        """Integers as QONNX has them: floats, and a note of their type."""
        stored = self.floats(name, weights)
        types = need("onnx")
        kind = types.StringStringEntryProto(
            key="finn_datatype", value=integer_type(int(weights.min()), int(weights.max()))
        )
        self.annotations.append(types.TensorAnnotation(tensor_name=stored, quant_parameter_tensor_names=[kind]))
        return stored

    def _constant_of(self, name: str) -> Tensor:
        (constant,) = (one for one in self.constants if one.name == name)
        return torch.from_numpy(need("onnx").numpy_helper.to_array(constant).copy()).double()


def float_thresholds(scale: Tensor, shift: Tensor, steps: Tensor, tie_passes: Tensor) -> tuple[Tensor, Tensor]:
    """As ``integer_thresholds``, of a float32 source: (C, T) float32, the least numbers that have passed."""
    scale, shift = scale.double()[:, None], shift.double()[:, None]
    crossing = (steps - shift) / scale.abs()
    single = crossing.float()
    short = (single < crossing) | (~tie_passes & (single == crossing))
    from_here = torch.where(short, single.nextafter(torch.tensor(torch.inf)), single)
    passed = torch.where(tie_passes, shift >= steps, shift > steps)
    from_here = torch.where(scale == 0, torch.where(passed, -MOST, MOST), from_here).clamp(-MOST, MOST)
    return from_here, torch.where(scale < 0, -1, 1).squeeze(1)


def integer_type(low: int, high: int) -> str:
    """QONNX's name of the narrowest integers that hold low to high."""
    return f"INT{1 + max(-low - 1, high).bit_length()}" if low < 0 else f"UINT{max(high.bit_length(), 1)}"
