"""A network as ONNX nodes: every operator that torch calls, recorded twice, and written once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy.onnx.nodes import Nodes
from common.deploy.onnx.operators import OPERATORS, SHAPED
from common.deploy.onnx.quantizers import write_activation, write_weight
from common.deploy.onnx.recording import Call, Recorder, tensors_in
from common.errors import UserError
from common.quantizers.base import QuantAct
from common.quantizers.layers import QuantLayer

FORM = "the ONNX export"
BATCHES = 2, 3  # what differs between them follows the batch
PROMOTING = {
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "where",
}  # what else they are given becomes of the type of their result
Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Bound:
    """A call as a rule of ``OPERATORS`` sees it.

    Attributes:
        name: of its output, or the beginning of those of several. layer, called: for messages.
        given: the arguments by name; tensors are the names of their ONNX values.
        sizes: of each tensor among the arguments, by name. results: of each output. None follows the batch.
    """

    name: str
    layer: str
    operator: str
    called: str
    given: dict[str, Any]
    sizes: dict[str, Sizes]
    results: list[Sizes]

    def refuse(self, why: str) -> UserError:
        return UserError(f"{self.layer or 'the network'}: {why}")


class NetworkWriter(Nodes):
    """From the input "images" to the output "logits". What a layer returns has the layer's name, for its first use."""

    def __init__(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """
        Args:
            network: a copy, in evaluation mode, from images to logits.
        Raises:
            UserError: an operator, or an argument of one, that this export does not know.
        """
        super().__init__()
        self.recorder = Recorder(network, OPERATORS)
        draw = torch.Generator().manual_seed(0)
        self.images = [torch.randn(batch, *image_shape, generator=draw) for batch in BATCHES]
        copies = [images.clone() for images in self.images]
        (calls, logits), (others, _) = map(self.recorder.record, copies)
        if [call.operator for call in calls] != [call.operator for call in others]:
            raise UserError("the network takes another path for other images, which has no form as a graph")
        self.logits = logits
        self.names = {id(copies[0]): "images"}
        self.taken: set[str] = {"images", "logits"}
        for call, other in zip(calls, others, strict=True):
            self._write(call, other)
        if id(logits) not in self.names:
            raise UserError("the network's logits do not depend on its images")
        self.nodes.append(self.helper.make_node("Identity", [self.names[id(logits)]], ["logits"]))

    def _write(self, call: Call, other: Call) -> None:
        name = self._name_of(call)
        if call.operator == "quantizer":
            value = self._value(call.given["self"], other.given["self"], call, name)
            self.names[id(call.results[0])] = self.quantizer(call.module, name, value)
            return
        written = self.operator(self._bound(call, other, name))
        names = [written] if isinstance(written, str) else written
        self.names.update({id(result): one for result, one in zip(call.results, names, strict=False)})

    def quantizer(self, act: QuantAct, name: str, value: str) -> str:
        return write_activation(self, act, name, value)

    def weight(self, layer: QuantLayer, name: str) -> str:
        return write_weight(self, layer, name)

    def operator(self, call: Bound) -> str | list[str]:
        rule = OPERATORS.get(call.operator)
        if rule is None:
            raise call.refuse(f"{FORM} does not know torch's {call.called}")
        return rule(self, call)

    def _bound(self, call: Call, other: Call, name: str) -> Bound:
        results = [_sizes(*pair) for pair in zip(call.shapes, other.shapes, strict=True)]
        bound = Bound(name, call.layer, call.operator, call.called, {}, {}, results)
        for key, value in call.given.items():
            there = other.given[key]
            if isinstance(value, Tensor):
                bound.sizes[key] = _sizes(value.shape, there.shape)
            if any(True for _ in tensors_in(value)):
                bound.given[key] = self._values(value, there, call, f"{name}:{key}")
            elif call.operator not in SHAPED and str(value) != str(there):
                raise bound.refuse(f"computes with {value}, a number that follows the size of the batch")
            else:
                bound.given[key] = value
        return bound

    def _values(self, value: Any, other: Any, call: Call, name: str) -> Any:
        if isinstance(value, tuple | list):
            pairs = enumerate(zip(value, other, strict=True))
            return [self._values(one, there, call, f"{name}{place}") for place, (one, there) in pairs]
        return self._value(value, other, call, name) if isinstance(value, Tensor) else value

    def _value(self, tensor: Tensor, other: Tensor, call: Call, name: str) -> str:
        """The name of what a call is given; a constant is written for that."""
        if id(tensor) in self.names:
            return self.names[id(tensor)]
        if id(tensor) in self.recorder.weights:
            layer, layer_name = self.recorder.weights[id(tensor)]
            self.names[id(tensor)] = self.weight(layer, layer_name)
            return self.names[id(tensor)]
        if id(other) in self.recorder.live:  # which is of the last recording, and keeps what it names
            raise UserError(f"{call.layer}: {FORM} does not know all that {call.operator} is given")
        name = self.recorder.names.get(id(tensor), name)
        if call.operator == "index" and tensor.dtype == torch.bool:
            raise UserError(f"{call.layer}: an index by truths has no form in ONNX here; index by numbers")
        if call.operator in PROMOTING and not (call.operator == "where" and tensor.dtype == torch.bool):
            tensor, other = tensor.to(call.results[0].dtype), other.to(call.results[0].dtype)
        if tensor.shape == other.shape:
            if not torch.equal(tensor, other) and not bool(tensor.isnan().any()):
                raise UserError(f"{call.layer}: works with a constant that is another one each time")
            return self.constant(name, tensor)
        first = tensor[:1]
        if tensor.shape[1:] == other.shape[1:] and all(
            torch.equal(one, first.expand_as(one)) for one in (tensor, other)
        ):
            return self.repeated(name, self.constant(name, first), (None, *[1] * (tensor.ndim - 1)))
        raise UserError(f"{call.layer}: works with a constant that follows the size of the batch")

    def repeated(self, name: str, value: str, sizes: Sizes) -> str:
        """A value repeated to some sizes, where 1 is as it is and None the size of the batch."""
        if None not in sizes:
            return self.add(
                "Expand", [value, self.integers(f"{name}:shape", [int(one or 1) for one in sizes])], f"{name}.expanded"
            )
        if "batch" not in self.taken:
            self.taken.add("batch")
            self.add("Shape", ["images"], "batch", start=0, end=1)
        parts = ["batch" if one is None else self.integers(f"{name}:size", [one]) for one in sizes]
        shape = self.add("Concat", parts, f"{name}.shape", axis=0) if len(parts) > 1 else parts[0]
        return self.add("Expand", [value, shape], f"{name}.expanded")

    def _name_of(self, call: Call) -> str:
        layer, operator = call.layer, call.operator
        wished = layer if layer and (call.is_result or call.module) else f"{layer}.{operator}" if layer else operator
        name, count = wished, 1
        while name in self.taken:
            name, count = f"{wished}.{count}", count + 1
        self.taken.add(name)
        return name


def _sizes(one: Sequence[int], other: Sequence[int]) -> Sizes:
    return tuple(size if size == there else None for size, there in zip(one, other, strict=True))
