"""Views, parts and joins of tensors: where the batch is a dimension like others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter


def reshaped(to: NetworkWriter, call: Bound) -> str:
    """Whatever keeps the order of the elements: a tensor of the same elements in another shape."""
    value, sizes = call.given["self"], call.results[0]
    if sizes == call.sizes["self"]:
        return value
    if sizes.count(None) > 1:
        raise call.refuse(f"a {call.operator} after which two dimensions follow the size of the batch")
    shape = to.integers(f"{call.name}:shape", [-1 if size is None else size for size in sizes])
    return to.add("Reshape", [value, shape], call.name)


def expand(to: NetworkWriter, call: Bound) -> str:
    before, after = call.sizes["self"], call.results[0]
    before = (*[1] * (len(after) - len(before)), *before)
    sizes = tuple(1 if there == here else there for here, there in zip(before, after, strict=True))
    return to.repeated(call.name, call.given["self"], sizes)


def transpose(to: NetworkWriter, call: Bound) -> str:
    order = list(range(len(call.sizes["self"])))
    if call.operator == "permute":
        order = [dim % len(order) for dim in call.given["dims"]]
    elif call.operator == "t":
        order.reverse()
    else:
        one, other = call.given["dim0"], call.given["dim1"]
        order[one], order[other] = order[other], order[one]
    return to.add("Transpose", [call.given["self"]], call.name, perm=order)


def sliced(to: NetworkWriter, call: Bound) -> str:
    start, end = call.given["start"] or 0, call.given["end"]
    limits = {"start": start, "end": 2**63 - 1 if end is None else end, "axis": call.given["dim"]}
    numbers = [
        to.integers(f"{call.name}:{key}", [value]) for key, value in (*limits.items(), ("step", call.given["step"]))
    ]
    return to.add("Slice", [call.given["self"], *numbers], call.name)


def select(to: NetworkWriter, call: Bound) -> str:
    index = to.integers(f"{call.name}:index", call.given["index"])
    return to.add("Gather", [call.given["self"], index], call.name, axis=call.given["dim"])


def index(to: NetworkWriter, call: Bound) -> str:
    places = [place for place, one in enumerate(call.given["indices"]) if one is not None]
    if len(places) != 1:
        raise call.refuse("an index by several tensors has no form in ONNX here")
    return to.add("Gather", [call.given["self"], call.given["indices"][places[0]]], call.name, axis=places[0])


def split(to: NetworkWriter, call: Bound) -> list[str]:
    axis = call.given["dim"]
    sizes = [result[axis] for result in call.results]
    if None in sizes:
        raise call.refuse("a split of the batch has no form in ONNX here")
    names = [f"{call.name}.{place}" for place in range(len(sizes))]
    lengths = to.integers(f"{call.name}:sizes", sizes)
    to.add_several("Split", [call.given["self"], lengths], names, axis=axis)
    return names


def unbind(to: NetworkWriter, call: Bound) -> list[str]:
    value, axis = call.given["self"], call.given["dim"]
    names = [f"{call.name}.{place}" for place in range(len(call.results))]
    for place, name in enumerate(names):
        to.add("Gather", [value, to.integers(f"{call.name}:{place}", place)], name, axis=axis)
    return names


def concatenate(to: NetworkWriter, call: Bound) -> str:
    return to.add("Concat", call.given["tensors"], call.name, axis=call.given["dim"])


def stack(to: NetworkWriter, call: Bound) -> str:
    axis = to.integers(f"{call.name}:axis", [call.given["dim"]])
    parts = [
        to.add("Unsqueeze", [one, axis], f"{call.name}.{place}") for place, one in enumerate(call.given["tensors"])
    ]
    return to.add("Concat", parts, call.name, axis=call.given["dim"])


def pad(to: NetworkWriter, call: Bound) -> str:
    ours, value = call.given.get("mode", "constant"), call.given["value"] or 0.0
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    before, after = call.given["pad"][0::2][::-1], call.given["pad"][1::2][::-1]
    if ours == "circular":
        return _wrapped(to, call, before, after)
    untouched = [0] * (len(call.sizes["self"]) - len(before))
    pads = to.integers(f"{call.name}:pads", [*untouched, *before, *untouched, *after])
    fill = [to.floats(f"{call.name}:value", value)] if ours == "constant" else []
    return to.add("Pad", [call.given["self"], pads, *fill], call.name, mode=modes[ours])


def _wrapped(to: NetworkWriter, call: Bound, before: list[int], after: list[int]) -> str:
    """Its end before it and its beginning behind it, dimension by dimension; OpenVINO has no Pad that wraps."""
    value, first = call.given["self"], len(call.sizes["self"]) - len(before)
    for axis, (low, high) in enumerate(zip(before, after, strict=True), first):

        def part(where: str, start: int, stop: int, axis: int = axis, value: str = value) -> str:
            name, limits = f"{call.name}.{axis}.{where}", {"start": start, "stop": stop, "axis": axis}
            numbers = [to.integers(f"{name}:{key}", [one]) for key, one in limits.items()]
            return to.add("Slice", [value, *numbers], name)

        end = [part("end", -low, 2**63 - 1)] if low else []
        parts = [*end, value, *([part("beginning", 0, high)] if high else [])]
        value = to.add("Concat", parts, f"{call.name}.{axis}", axis=axis) if len(parts) > 1 else value
    return to.add("Identity", [value], call.name)
