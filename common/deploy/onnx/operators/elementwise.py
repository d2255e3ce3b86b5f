"""Arithmetic and activation functions, value by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.deploy.onnx.operators.rules import Rule, attributes, operand, plain

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter


def scaled_sum(kind: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        one, other, alpha = operand(to, call, "self"), operand(to, call, "other"), call.given.get("alpha", 1)
        if alpha != 1:
            other = to.add("Mul", [other, to.floats(f"{call.name}:alpha", alpha)], f"{call.name}.scaled")
        return to.add(kind, [one, other], call.name)

    return rule


def divide(to: NetworkWriter, call: Bound) -> str:
    if call.given.get("rounding_mode") is not None:
        raise call.refuse("a division that rounds has no form in ONNX here")
    return plain("Div", "self", "other")(to, call)


def clip(low: str, high: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        limits = [call.given.get(bound) for bound in (low, high)]
        if any(isinstance(limit, str) for limit in limits):
            raise call.refuse("limits of a clamp that are tensors have no form in ONNX here")
        inputs = ["" if one is None else to.floats(f"{call.name}:limit{one}", one) for one in limits]
        return to.add("Clip", [call.given["self"], *inputs], call.name)

    return rule


def silu(to: NetworkWriter, call: Bound) -> str:
    gate = to.add("Sigmoid", [call.given["self"]], f"{call.name}.gate")
    return to.add("Mul", [call.given["self"], gate], call.name)


def hardswish(to: NetworkWriter, call: Bound) -> str:
    """In torch's order: x * min(max(x + 3, 0), 6) / 6."""
    x = call.given["self"]
    moved = to.chain(f"{call.name}.gate", x, ("moved", "Add", (3.0,)), ("clipped", "Clip", (0.0, 6.0)))
    product = to.add("Mul", [x, moved], f"{call.name}.product")
    return to.add("Div", [product, to.floats(f"{call.name}:six", 6.0)], call.name)


def hardsigmoid(to: NetworkWriter, call: Bound) -> str:
    steps = ("moved", "Add", (3.0,)), ("clipped", "Clip", (0.0, 6.0)), ("sixth", "Div", (6.0,))
    return to.chain(call.name, call.given["self"], *steps)


def elu(to: NetworkWriter, call: Bound) -> str:
    if call.given["scale"] != 1 or call.given["input_scale"] != 1:
        raise call.refuse("an ELU with scales has no form in ONNX here")
    return attributes("Elu", alpha="alpha")(to, call)


def prelu(to: NetworkWriter, call: Bound) -> str:
    """A slope for each channel, the second dimension."""
    beyond = list(range(1, len(call.sizes["self"]) - 1))
    slopes = to.add(
        "Unsqueeze", [call.given["weight"], to.integers(f"{call.name}:axes", beyond)], f"{call.name}.slopes"
    )
    return to.add("PRelu", [call.given["self"], slopes], call.name)


def softplus(to: NetworkWriter, call: Bound) -> str:
    if call.given["beta"] != 1:
        raise call.refuse("a softplus of another beta than 1 has no form in ONNX here")
    return plain("Softplus")(to, call)


def masked_fill(to: NetworkWriter, call: Bound) -> str:
    return to.add("Where", [call.given["mask"], operand(to, call, "value"), call.given["self"]], call.name)


def rsqrt(to: NetworkWriter, call: Bound) -> str:
    return to.add("Reciprocal", [to.add("Sqrt", [call.given["self"]], f"{call.name}.sqrt")], call.name)
