"""What a rule for an operator is, and the rules that are one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter

Rule = Callable[["NetworkWriter", "Bound"], Any]  # gives the name of its output, or those of several


def plain(kind: str, *operands: str, **attributes: Any) -> Rule:
    """One node; operands are torch's names of its inputs, attributes ONNX's names with values."""

    def rule(to: NetworkWriter, call: Bound) -> str:
        inputs = [operand(to, call, name) for name in operands or ("self",)]
        return to.add(kind, inputs, call.name, **attributes)

    return rule


def operand(to: NetworkWriter, call: Bound, name: str) -> str:
    value = call.given[name]
    return value if isinstance(value, str) else to.floats(f"{call.name}:{name}", value)


def attributes(kind: str, **names: str) -> Rule:
    """One node, whose attributes are arguments of torch's by other names."""

    def rule(to: NetworkWriter, call: Bound) -> str:
        given = {theirs: call.given[ours] for theirs, ours in names.items()}
        return to.add(kind, [call.given["self"]], call.name, **given)

    return rule
