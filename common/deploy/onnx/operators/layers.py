"""Reductions, products, normalisations and poolings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from common.deploy.onnx.operators.rules import Rule, plain

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter


def reduced(kind: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        if call.given.get("dtype") is not None:
            raise call.refuse(f"a {call.operator} in another type has no form in ONNX here")
        dims = call.given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        axes = [to.integers(f"{call.name}:axes", list(dims))] if dims else []
        return to.add(kind, [call.given["self"], *axes], call.name, keepdims=int(call.given.get("keepdim", False)))

    return rule


def extreme(kind: str, of_two: str) -> Rule:
    """Of a tensor, of its dimension (the values, not where they are), or of two tensors."""

    def rule(to: NetworkWriter, call: Bound) -> str:
        return (plain(of_two, "self", "other") if "other" in call.given else reduced(kind))(to, call)

    return rule


def vector_norm(to: NetworkWriter, call: Bound) -> str:
    if call.given["ord"] != 2:
        raise call.refuse("a norm other than the Euclidean one has no form in ONNX here")
    return reduced("ReduceL2")(to, call)


def linear(to: NetworkWriter, call: Bound) -> str:
    value, weight, bias = (call.given[name] for name in ("input", "weight", "bias"))
    if len(call.sizes["input"]) == 2:
        return to.add("Gemm", [value, weight, *([] if bias is None else [bias])], call.name, transB=1)
    turned = to.add("Transpose", [weight], f"{call.name}.turned", perm=[1, 0])
    if bias is None:
        return to.add("MatMul", [value, turned], call.name)
    return to.add("Add", [to.add("MatMul", [value, turned], f"{call.name}.product"), bias], call.name)


def convolution(to: NetworkWriter, call: Bound) -> str:
    given = call.given
    inputs = [given[name] for name in ("input", "weight", "bias") if given[name] is not None]
    sides = call.sizes["weight"][2:]
    padding = list(given["padding"]) * (len(sides) if len(given["padding"]) == 1 else 1)
    geometry = {
        "kernel_shape": sides,
        "strides": given["stride"],
        "dilations": given["dilation"],
        "pads": padding * 2,
        "group": given["groups"],
    }
    if not given["transposed"]:
        return to.add("Conv", inputs, call.name, **geometry)
    return to.add("ConvTranspose", inputs, call.name, **geometry, output_padding=given["output_padding"])


def _scale_and_shift(to: NetworkWriter, call: Bound, channels: Any) -> list[str]:
    """The weight and the bias of a normalisation, 1 and 0 where it has none."""
    return [
        to.floats(f"{call.name}.{name}", torch.full((channels,), instead))
        if call.given[name] is None
        else call.given[name]
        for name, instead in (("weight", 1.0), ("bias", 0.0))
    ]


def batch_norm(to: NetworkWriter, call: Bound) -> str:
    given = call.given
    if given["training"]:
        raise call.refuse("normalises by its own input's statistics; a network to deploy needs running ones")
    statistics = [given["running_mean"], given["running_var"]]
    values = [*_scale_and_shift(to, call, call.sizes["running_mean"][0]), *statistics]
    return to.add("BatchNormalization", [given["input"], *values], call.name, epsilon=given["eps"])


def layer_norm(to: NetworkWriter, call: Bound) -> str:
    given, shape = call.given, call.given["normalized_shape"]
    scale = to.floats(f"{call.name}.weight", torch.ones(shape)) if given["weight"] is None else given["weight"]
    bias = [] if given["bias"] is None else [given["bias"]]
    return to.add(
        "LayerNormalization", [given["input"], scale, *bias], call.name, axis=-len(shape), epsilon=given["eps"]
    )


def group_norm(to: NetworkWriter, call: Bound) -> str:
    given = call.given
    values = _scale_and_shift(to, call, call.sizes["input"][1])
    attributes = {"num_groups": given["num_groups"], "epsilon": given["eps"]}
    return to.add("GroupNormalization", [given["input"], *values], call.name, **attributes)


def _pair(value: Any, instead: Any = None) -> list[int]:
    value = instead if isinstance(value, list | tuple) and not value else value
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers


def _window(call: Bound) -> dict[str, Any]:
    given = call.given
    return {
        "kernel_shape": _pair(given["kernel_size"]),
        "strides": _pair(given["stride"], given["kernel_size"]),
        "pads": _pair(given["padding"]) * 2,
        "ceil_mode": int(given["ceil_mode"]),
    }


def max_pool(to: NetworkWriter, call: Bound) -> str:
    """Where ceil_mode counts, padded behind so far that no engine has to round: they differ in it."""
    window, dilations = _window(call), _pair(call.given["dilation"])
    behind = [
        max(pad, (after - 1) * stride + dilation * (kernel - 1) + 1 - before - pad)
        for pad, after, stride, dilation, kernel, before in zip(
            window["pads"],
            _sides(call.results[0]),
            window["strides"],
            dilations,
            window["kernel_shape"],
            _sides(call.sizes["self"]),
            strict=False,
        )
    ]
    pads = [*window["pads"][:2], *behind]
    return to.add(
        "MaxPool", [call.given["self"]], call.name, **{**window, "pads": pads, "ceil_mode": 0}, dilations=dilations
    )


def average_pool(to: NetworkWriter, call: Bound) -> str:
    window, divisor = _window(call), call.given["divisor_override"]
    if window.pop("ceil_mode"):
        return _average_pool_of_parts(to, call, window, divisor)
    name = call.name if divisor is None else f"{call.name}.mean"
    counted = int(call.given["count_include_pad"] or divisor is not None)
    value = to.add("AveragePool", [call.given["self"]], name, **window, count_include_pad=counted)
    if divisor is None:
        return value
    return to.chain(call.name, value, ("of", "Mul", (math.prod(window["kernel_shape"]) / divisor,)))


def _average_pool_of_parts(to: NetworkWriter, call: Bound, window: dict[str, Any], divisor: int | None) -> str:
    """With ceil_mode, whose last windows engines divide by different numbers: a product from both sides."""
    shares = []
    for axis, (before, after) in enumerate(zip(_sides(call.sizes["self"]), _sides(call.results[0]), strict=True)):
        kernel, stride, pad = (window[key][axis] for key in ("kernel_shape", "strides", "pads"))
        shares.append(torch.zeros(after, before))
        for place in range(after):
            first, beyond = place * stride - pad, min(place * stride - pad + kernel, before + pad)
            inside = range(max(first, 0), min(beyond, before))
            counted = beyond - first if call.given["count_include_pad"] else len(inside)
            shares[axis][place, inside.start : inside.stop] = 1 if divisor is not None else 1 / counted
    if divisor is not None:
        shares[0] /= divisor
    return _from_both_sides(to, call, *shares)


def _sides(sizes: Any) -> list[int]:
    return [int(size or 0) for size in sizes[-2:]]


def adaptive_average_pool(to: NetworkWriter, call: Bound) -> str:
    """Of one pixel, or a product from both sides with the windows' shares."""
    value, (rows, columns) = call.given["self"], call.results[0][-2:]
    if (rows, columns) == (1, 1):
        return to.add("GlobalAveragePool", [value], call.name)
    high, wide = call.sizes["self"][-2:]
    return _from_both_sides(to, call, _shares(high, rows), _shares(wide, columns))


def _from_both_sides(to: NetworkWriter, call: Bound, rows: torch.Tensor, columns: torch.Tensor) -> str:
    left, right = to.floats(f"{call.name}:rows", rows), to.floats(f"{call.name}:columns", columns.T.contiguous())
    return to.add("MatMul", [to.add("MatMul", [left, call.given["self"]], f"{call.name}.rows"), right], call.name)


def _shares(size: Any, windows: Any) -> torch.Tensor:
    """(windows, size): the means over the windows of an adaptive pooling."""
    shares = torch.zeros(windows, size)
    for window in range(windows):
        first, beyond = window * size // windows, -(-(window + 1) * size // windows)
        shares[window, first:beyond] = 1 / (beyond - first)
    return shares
