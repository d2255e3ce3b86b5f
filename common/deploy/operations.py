"""The operations of a traced network by kind and named arguments, whether a module, a function or a method does them.

An exporter knows kinds and asks for every argument by its name; what it does not model it refuses with ``require``, so
that no argument is passed over in silence.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.errors import UserError
from common.quantizers.base import QuantAct
from common.quantizers.layers import QuantConv2d, QuantLinear

_MODULES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Conv2d, QuantConv2d), "convolution"),
    **dict.fromkeys((nn.BatchNorm2d, nn.BatchNorm1d), "batch_norm"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), "identity"),
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.MaxPool2d: "max_pool",
    nn.AvgPool2d: "average_pool",
    nn.AdaptiveAvgPool2d: "adaptive_average_pool",
    nn.Flatten: "flatten",
    nn.Linear: "linear",
    QuantLinear: "quantized_linear",
}
_IN_PLACE = (F.relu_, torch.relu_, "relu_", operator.iadd, "add_")
_CALLS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", *_IN_PLACE[:3]), "relu"),
    F.relu6: "relu6",
    **dict.fromkeys((operator.add, torch.add, "add", *_IN_PLACE[3:]), "add"),
    **dict.fromkeys((torch.cat, torch.concat), "concatenate"),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), "max_pool"),
    F.avg_pool2d: "average_pool",
    F.adaptive_avg_pool2d: "adaptive_average_pool",
    **dict.fromkeys(("mean", torch.mean), "mean"),
    **dict.fromkeys(("flatten", torch.flatten), "flatten"),
    "expand": "expand",
    **dict.fromkeys((F.dropout, F.dropout2d), "dropout"),
}
_REQUIRED = object()
_WINDOW = {"kernel_size": _REQUIRED, "stride": None, "padding": 0}
_ARGUMENTS: dict[str, dict[str, Any]] = {  # behind the tensors, in the order and with the defaults of the functions
    "relu": {"inplace": False},
    "relu6": {"inplace": False},
    "add": {"alpha": 1},
    "concatenate": {"dim": 0},
    "max_pool": _WINDOW | {"dilation": 1, "ceil_mode": False, "return_indices": False},
    "average_pool": _WINDOW | {"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    "adaptive_average_pool": {"output_size": _REQUIRED},
    "mean": {"dim": None, "keepdim": False, "dtype": None},
    "flatten": {"start_dim": 0, "end_dim": -1},
    "expand": {"size": _REQUIRED},
    "dropout": {"p": 0.5, "training": True, "inplace": False},
}
UNKNOWN = "unknown"
_VIEWS = ("identity", "flatten", "expand")  # share the memory of their input


@dataclass(frozen=True)
class Operation:
    """A node of the graph.

    Attributes:
        kind: a value of the tables above; "input" and "output"; "quantizer", of activations; or ``UNKNOWN``.
        name: of its layer, else of the node. layer: the module, if it is one.
        inputs: the tensors that it works on, one as often as it is written; a number where one is added.
        options: the other arguments, by name.
    """

    node: fx.Node
    kind: str
    name: str
    layer: Any
    inputs: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def what(self) -> str:
        """Its layer or function, on one line."""
        return " ".join(str(self.layer or self.node.target).split())

    def refuse(self, reason: str) -> UserError:
        return UserError(f"{self.name}: {reason}")

    def require(self, form: str, **expected: Any) -> None:
        """
        Raises:
            UserError: an argument is not what ``form`` models.
        """
        for name, value in expected.items():
            found = self.options[name]
            if found != value and (not isinstance(found, tuple | list) or set(found) != {value}):
                what = self.kind.replace("_", " ")
                raise self.refuse(f"{form} knows {what} with {name}={value} alone, this one has {name}={found}")

    def pair(self, name: str) -> tuple[int, int]:
        """An argument for rows and columns: kernel_size, stride (by default the kernel's size), padding, dilation."""
        value = self.options[name]
        if name == "stride" and value in (None, (), []):
            return self.pair("kernel_size")
        pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(one, int) for one in pair):
            raise self.refuse(f"expected one or two whole numbers as {name}, not {value}")
        return pair[0], pair[1]

    def compute(self, *values: Tensor) -> Any:
        """What torch computes from other tensors in the place of ``inputs``."""
        if self.layer is not None:
            return self.layer(*values)
        given = dict(zip(self.inputs, values, strict=True))
        args: Any = fx.map_arg(self.node.args, given.__getitem__)
        kwargs: Any = fx.map_arg(self.node.kwargs, given.__getitem__)
        if self.node.op == "call_method":
            return getattr(args[0], str(self.node.target))(*args[1:], **kwargs)
        function: Any = self.node.target
        return function(*args, **kwargs)


def operations(source: fx.GraphModule) -> Iterator[Operation]:
    """Every node of a traced network in evaluation mode, in order.

    Raises:
        UserError: arguments that torch's function does not have, or that depend on the input; an operation in place
            whose overwritten input is read behind it.
    """
    seen: dict[fx.Node, Operation] = {}
    for node in source.graph.nodes:
        operation = seen[node] = _read(source, node)
        if operation.options.get("inplace") or (operation.layer is None and node.target in _IN_PLACE):
            _refuse_overwritten(operation, seen)
        yield operation


def _read(source: fx.GraphModule, node: fx.Node) -> Operation:
    name, inputs = node.name, tuple(node.all_input_nodes)
    if node.op == "call_module":
        layer, name = source.get_submodule(str(node.target)), str(node.target)
        kind = "quantizer" if isinstance(layer, QuantAct) else _MODULES.get(type(layer), UNKNOWN)
        defaults = _ARGUMENTS.get(kind, {})
        if kind == "batch_norm" and layer.running_mean is None:
            raise UserError(f"{name}: normalises by its own input's statistics; a network to deploy needs running ones")
        options = {key: getattr(layer, key, default) for key, default in defaults.items()}
        return Operation(node, kind, name, layer, inputs, options)
    if node.op in ("placeholder", "output"):
        if node.op == "output" and node.args[0] not in node.all_input_nodes:
            raise UserError("the network returns more than one tensor; a network to deploy returns its logits")
        return Operation(node, {"placeholder": "input"}.get(node.op, node.op), name, None, inputs, {})
    kind = UNKNOWN if node.op == "get_attr" else _CALLS.get(node.target, UNKNOWN)
    if kind == UNKNOWN:
        return Operation(node, kind, name, None, inputs, {})
    return _read_call(node, kind)


def _read_call(node: fx.Node, kind: str) -> Operation:
    count = 2 if kind == "add" else 1
    inputs, others, known = tuple(node.args[:count]), node.args[count:], _ARGUMENTS[kind]
    if kind == "concatenate" and inputs:
        inputs = tuple(inputs[0]) if isinstance(inputs[0], tuple | list) else ()
    if kind == "expand":
        others = others if len(others) == 1 and isinstance(others[0], tuple | list) else (others,)
    options = {**known, **dict(zip(known, others, strict=False)), **node.kwargs}
    tensors = {one for one in inputs if isinstance(one, fx.Node)}
    operation = Operation(node, kind, node.name, None, inputs, options)
    complete = len(inputs) >= count and len(others) <= len(known) and _REQUIRED not in options.values()
    if not tensors or not complete or options.keys() != known.keys() or tensors != set(node.all_input_nodes):
        raise operation.refuse(f"{node.format_node()} has arguments that are not known here")
    if kind == "dropout":
        operation.require("a network to deploy", training=False)
        return replace(operation, kind="identity", options={})
    return operation


def _refuse_overwritten(operation: Operation, seen: Mapping[fx.Node, Operation]) -> None:
    """Graphs have values, not memory: what is written over must not be read any more, under whatever name."""
    shared, ahead = {operation.node}, [operation.inputs[0]]
    while ahead:
        node = ahead.pop()
        if node in shared:
            continue
        shared.add(node)
        if any(user not in seen for user in node.users):
            raise operation.refuse(f"works in place on {node.name}, which is read again behind it; a copy would do")
        ahead += [user for user in node.users if user is not operation.node and seen[user].kind in _VIEWS]
        ahead += seen[node].inputs if seen[node].kind in _VIEWS else []
