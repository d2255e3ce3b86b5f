"""ONNX nodes and constants as they are written, one after the other; a tensor is known by its name."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.deploy.extras import need


class Nodes:
    """The nodes and constants of a graph. What writes one returns the name of its output.

    Attributes:
        types: ONNX's numbers of element types, such as ``types.INT32``.
        annotations: of the graph, on what its tensors hold.
    """

    def __init__(self) -> None:
        self.helper = need("onnx").helper
        self.types = need("onnx").TensorProto
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.annotations: list[Any] = []
        self.stored: dict[Any, str] = {}  # the name of each constant by what it holds: equal ones are stored once

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.add_several(kind, inputs, [output], **attributes)
        return output

    def add_several(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self.helper.make_node(kind, inputs, outputs, name=f"{kind}:{outputs[0]}", **attributes))

    def constant(self, name: str, value: Tensor) -> str:
        """Floats, whole numbers or truths, as they are."""
        if value.is_floating_point():
            return self.floats(name, value)
        if value.dtype == torch.bool:
            return self._constant(name, self.types.BOOL, value.shape, value.numpy().tobytes())
        return self.integers(name, value)

    def floats(self, name: str, value: Tensor | float | None) -> str:
        array = np.asarray(value, dtype=np.float32)
        return self._constant(name, self.types.FLOAT, array.shape, array.tobytes())

    def integers(self, name: str, value: int | list[int] | Tensor, bits: int = 64) -> str:
        array = np.asarray(value, dtype=f"int{bits}")
        return self._constant(name, self.types.INT64 if bits == 64 else self.types.INT32, array.shape, array.tobytes())

    def codes(self, name: str, codes: Tensor, bits: int) -> str:
        """Codes in [0, 2^bits), any shape: two to a byte up to 4 bits, one byte each up to 8, else two."""
        raw: Any = codes.flatten().numpy().astype(np.uint8 if bits <= 8 else np.uint16)
        kind = self.types.UINT8 if bits <= 8 else self.types.UINT16
        if bits <= 4:
            pairs = np.append(raw, np.zeros(raw.size % 2, np.uint8)).reshape(-1, 2)
            kind, raw = self.types.UINT4, pairs[:, 0] | pairs[:, 1] << 4
        return self._constant(name, kind, codes.shape, raw.tobytes())

    def bytewise(self, name: str, value: Tensor | int, kind: str) -> str:
        """Integers as UINT8 or INT8, which ``kind`` names."""
        array = np.asarray(value, dtype=kind.lower())
        return self._constant(name, getattr(self.types, kind), array.shape, array.tobytes())

    def dequantize(self, stored: str, kind: str, name: str, scale: Tensor | float = 1.0, axis: int = 0) -> str:
        """Bytes of a kind as floats times a scale, a 0-dimensional one or (filters,), along an axis."""
        factor = self.floats(f"{name}:scale", scale)
        zero = self.bytewise(f"{name}:zero", torch.zeros(torch.as_tensor(scale).shape), kind)
        along = {"axis": axis} if torch.as_tensor(scale).ndim else {}
        return self.add("DequantizeLinear", [stored, factor, zero], name, **along)

    def _constant(self, name: str, kind: int, shape: torch.Size | tuple[int, ...], raw: bytes) -> str:
        content = (kind, tuple(shape), raw)
        if content not in self.stored:
            self.stored[content] = name
            self.constants.append(self.helper.make_tensor(name, kind, shape, raw, raw=True))
        return self.stored[content]

    def chain(self, name: str, value: str, *steps: tuple[str, str, tuple[float | Tensor, ...]]) -> str:
        """Apply (suffix, kind of node, float operands) one after the other; the last output is ``name`` itself."""
        for index, (suffix, kind, operands) in enumerate(steps):
            output = name if index == len(steps) - 1 else f"{name}.{suffix}"
            by = [self.floats(f"{name}.{suffix}:{place}", operand) for place, operand in enumerate(operands)]
            value = self.add(kind, [value, *by], output)
        return value
