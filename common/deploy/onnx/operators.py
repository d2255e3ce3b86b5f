"""torch's operators in ONNX's. What is not here, torch takes apart into what is, or it is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter

Rule = Callable[["NetworkWriter", "Bound"], Any]  # gives the name of its output, or those of several


def _plain(kind: str, *operands: str, **attributes: Any) -> Rule:
    """One node; operands are torch's names of its inputs, attributes ONNX's names with values."""

    def rule(to: NetworkWriter, call: Bound) -> str:
        inputs = [_operand(to, call, name) for name in operands or ("self",)]
        return to.add(kind, inputs, call.name, **attributes)

    return rule


def _operand(to: NetworkWriter, call: Bound, name: str) -> str:
    value = call.given[name]
    return value if isinstance(value, str) else to.floats(f"{call.name}:{name}", value)


def _sum(kind: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        one, other, alpha = _operand(to, call, "self"), _operand(to, call, "other"), call.given.get("alpha", 1)
        if alpha != 1:
            other = to.add("Mul", [other, to.floats(f"{call.name}:alpha", alpha)], f"{call.name}.scaled")
        return to.add(kind, [one, other], call.name)

    return rule


def _divide(to: NetworkWriter, call: Bound) -> str:
    if call.given.get("rounding_mode") is not None:
        raise call.refuse("a division that rounds has no form in ONNX here")
    return _plain("Div", "self", "other")(to, call)


def _attributes(kind: str, **names: str) -> Rule:
    """One node, whose attributes are arguments of torch's by other names."""

    def rule(to: NetworkWriter, call: Bound) -> str:
        given = {theirs: call.given[ours] for theirs, ours in names.items()}
        return to.add(kind, [call.given["self"]], call.name, **given)

    return rule


def _clip(low: str, high: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        limits = [call.given.get(bound) for bound in (low, high)]
        if any(isinstance(limit, str) for limit in limits):
            raise call.refuse("limits of a clamp that are tensors have no form in ONNX here")
        inputs = ["" if one is None else to.floats(f"{call.name}:limit{one}", one) for one in limits]
        return to.add("Clip", [call.given["self"], *inputs], call.name)

    return rule


def _silu(to: NetworkWriter, call: Bound) -> str:
    gate = to.add("Sigmoid", [call.given["self"]], f"{call.name}.gate")
    return to.add("Mul", [call.given["self"], gate], call.name)


def _hardswish(to: NetworkWriter, call: Bound) -> str:
    """In torch's order: x * min(max(x + 3, 0), 6) / 6."""
    x = call.given["self"]
    moved = to.chain(f"{call.name}.gate", x, ("moved", "Add", (3.0,)), ("clipped", "Clip", (0.0, 6.0)))
    product = to.add("Mul", [x, moved], f"{call.name}.product")
    return to.add("Div", [product, to.floats(f"{call.name}:six", 6.0)], call.name)


def _hardsigmoid(to: NetworkWriter, call: Bound) -> str:
    steps = ("moved", "Add", (3.0,)), ("clipped", "Clip", (0.0, 6.0)), ("sixth", "Div", (6.0,))
    return to.chain(call.name, call.given["self"], *steps)


def _elu(to: NetworkWriter, call: Bound) -> str:
    if call.given["scale"] != 1 or call.given["input_scale"] != 1:
        raise call.refuse("an ELU with scales has no form in ONNX here")
    return _attributes("Elu", alpha="alpha")(to, call)


def _reshaped(to: NetworkWriter, call: Bound) -> str:
    """Whatever keeps the order of the elements: a tensor of the same elements in another shape."""
    value, sizes = call.given["self"], call.results[0]
    if sizes == call.sizes["self"]:
        return value
    if sizes.count(None) > 1:
        raise call.refuse(f"a {call.operator} after which two dimensions follow the size of the batch")
    shape = to.integers(f"{call.name}:shape", [-1 if size is None else size for size in sizes])
    return to.add("Reshape", [value, shape], call.name)


def _expand(to: NetworkWriter, call: Bound) -> str:
    before, after = call.sizes["self"], call.results[0]
    before = (*[1] * (len(after) - len(before)), *before)
    sizes = tuple(1 if there == here else there for here, there in zip(before, after, strict=True))
    return to.repeated(call.name, call.given["self"], sizes)


def _transpose(to: NetworkWriter, call: Bound) -> str:
    order = list(range(len(call.sizes["self"])))
    if call.operator == "permute":
        order = [dim % len(order) for dim in call.given["dims"]]
    elif call.operator == "t":
        order.reverse()
    else:
        one, other = call.given["dim0"], call.given["dim1"]
        order[one], order[other] = order[other], order[one]
    return to.add("Transpose", [call.given["self"]], call.name, perm=order)


def _slice(to: NetworkWriter, call: Bound) -> str:
    start, end = call.given["start"] or 0, call.given["end"]
    limits = {"start": start, "end": 2**63 - 1 if end is None else end, "axis": call.given["dim"]}
    numbers = [
        to.integers(f"{call.name}:{key}", [value]) for key, value in (*limits.items(), ("step", call.given["step"]))
    ]
    return to.add("Slice", [call.given["self"], *numbers], call.name)


def _select(to: NetworkWriter, call: Bound) -> str:
    index = to.integers(f"{call.name}:index", call.given["index"])
    return to.add("Gather", [call.given["self"], index], call.name, axis=call.given["dim"])


def _index(to: NetworkWriter, call: Bound) -> str:
    places = [place for place, one in enumerate(call.given["indices"]) if one is not None]
    if len(places) != 1:
        raise call.refuse("an index by several tensors has no form in ONNX here")
    return to.add("Gather", [call.given["self"], call.given["indices"][places[0]]], call.name, axis=places[0])


def _split(to: NetworkWriter, call: Bound) -> list[str]:
    axis = call.given["dim"]
    sizes = [result[axis] for result in call.results]
    if None in sizes:
        raise call.refuse("a split of the batch has no form in ONNX here")
    names = [f"{call.name}.{place}" for place in range(len(sizes))]
    lengths = to.integers(f"{call.name}:sizes", sizes)
    to.add_several("Split", [call.given["self"], lengths], names, axis=axis)
    return names


def _unbind(to: NetworkWriter, call: Bound) -> list[str]:
    value, axis = call.given["self"], call.given["dim"]
    names = [f"{call.name}.{place}" for place in range(len(call.results))]
    for place, name in enumerate(names):
        to.add("Gather", [value, to.integers(f"{call.name}:{place}", place)], name, axis=axis)
    return names


def _concatenate(to: NetworkWriter, call: Bound) -> str:
    return to.add("Concat", call.given["tensors"], call.name, axis=call.given["dim"])


def _stack(to: NetworkWriter, call: Bound) -> str:
    axis = to.integers(f"{call.name}:axis", [call.given["dim"]])
    parts = [
        to.add("Unsqueeze", [one, axis], f"{call.name}.{place}") for place, one in enumerate(call.given["tensors"])
    ]
    return to.add("Concat", parts, call.name, axis=call.given["dim"])


def _reduce(kind: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        if call.given.get("dtype") is not None:
            raise call.refuse(f"a {call.operator} in another type has no form in ONNX here")
        dims = call.given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        axes = [to.integers(f"{call.name}:axes", list(dims))] if dims else []
        return to.add(kind, [call.given["self"], *axes], call.name, keepdims=int(call.given.get("keepdim", False)))

    return rule


def _vector_norm(to: NetworkWriter, call: Bound) -> str:
    if call.given["ord"] != 2:
        raise call.refuse("a norm other than the Euclidean one has no form in ONNX here")
    return _reduce("ReduceL2")(to, call)


def _linear(to: NetworkWriter, call: Bound) -> str:
    value, weight, bias = (call.given[name] for name in ("input", "weight", "bias"))
    if len(call.sizes["input"]) == 2:
        return to.add("Gemm", [value, weight, *([] if bias is None else [bias])], call.name, transB=1)
    turned = to.add("Transpose", [weight], f"{call.name}.turned", perm=[1, 0])
    if bias is None:
        return to.add("MatMul", [value, turned], call.name)
    return to.add("Add", [to.add("MatMul", [value, turned], f"{call.name}.product"), bias], call.name)


def _convolution(to: NetworkWriter, call: Bound) -> str:
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


def _batch_norm(to: NetworkWriter, call: Bound) -> str:
    given = call.given
    if given["training"]:
        raise call.refuse("a BatchNorm without running statistics; a network to deploy needs them")
    statistics = [given["running_mean"], given["running_var"]]
    values = [*_scale_and_shift(to, call, call.sizes["running_mean"][0]), *statistics]
    return to.add("BatchNormalization", [given["input"], *values], call.name, epsilon=given["eps"])


def _layer_norm(to: NetworkWriter, call: Bound) -> str:
    given, shape = call.given, call.given["normalized_shape"]
    scale = to.floats(f"{call.name}.weight", torch.ones(shape)) if given["weight"] is None else given["weight"]
    bias = [] if given["bias"] is None else [given["bias"]]
    return to.add(
        "LayerNormalization", [given["input"], scale, *bias], call.name, axis=-len(shape), epsilon=given["eps"]
    )


def _group_norm(to: NetworkWriter, call: Bound) -> str:
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


def _max_pool(to: NetworkWriter, call: Bound) -> str:
    dilations = _pair(call.given["dilation"])
    return to.add("MaxPool", [call.given["self"]], call.name, **_window(call), dilations=dilations)


def _average_pool(to: NetworkWriter, call: Bound) -> str:
    window, divisor = _window(call), call.given["divisor_override"]
    if window["ceil_mode"] and divisor is not None:
        raise call.refuse("an average pooling with ceil_mode and a divisor of its own has no form in ONNX here")
    name = call.name if divisor is None else f"{call.name}.mean"
    counted = int(call.given["count_include_pad"] or divisor is not None)
    value = to.add("AveragePool", [call.given["self"]], name, **window, count_include_pad=counted)
    if divisor is None:
        return value
    return to.chain(call.name, value, ("of", "Mul", (math.prod(window["kernel_shape"]) / divisor,)))


def _adaptive_average_pool(to: NetworkWriter, call: Bound) -> str:
    """Of one pixel, or a product from both sides with the windows' shares."""
    value, (rows, columns) = call.given["self"], call.results[0][-2:]
    if (rows, columns) == (1, 1):
        return to.add("GlobalAveragePool", [value], call.name)
    high, wide = call.sizes["self"][-2:]
    left = to.floats(f"{call.name}:rows", _shares(high, rows))
    right = to.floats(f"{call.name}:columns", _shares(wide, columns).T.contiguous())
    return to.add("MatMul", [to.add("MatMul", [left, value], f"{call.name}.rows"), right], call.name)


def _shares(size: Any, windows: Any) -> torch.Tensor:
    """(windows, size): the means over the windows of an adaptive pooling."""
    shares = torch.zeros(windows, size)
    for window in range(windows):
        first, beyond = window * size // windows, -(-(window + 1) * size // windows)
        shares[window, first:beyond] = 1 / (beyond - first)
    return shares


def _resize(mode: str) -> Rule:
    def rule(to: NetworkWriter, call: Bound) -> str:
        key = "input" if "input" in call.given else "self"
        if mode == "nearest":
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        else:
            how = {"coordinate_transformation_mode": "align_corners" if call.given["align_corners"] else "half_pixel"}
        before, after = (torch.tensor(sizes[2:]) for sizes in (call.sizes[key], call.results[0]))
        scales = to.floats(f"{call.name}:scales", torch.cat((torch.ones(2), after / before)))
        return to.add("Resize", [call.given[key], "", scales], call.name, mode=mode, **how)

    return rule


def _softplus(to: NetworkWriter, call: Bound) -> str:
    if call.given["beta"] != 1:
        raise call.refuse("a softplus of another beta than 1 has no form in ONNX here")
    return _plain("Softplus")(to, call)


def _pad(to: NetworkWriter, call: Bound) -> str:
    ours, value = call.given["mode"], call.given["value"] or 0.0
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    before, after = call.given["pad"][0::2][::-1], call.given["pad"][1::2][::-1]
    untouched = [0] * (len(call.sizes["self"]) - len(before))
    pads = to.integers(f"{call.name}:pads", [*untouched, *before, *untouched, *after])
    fill = [to.floats(f"{call.name}:value", value)] if ours == "constant" else []
    return to.add("Pad", [call.given["self"], pads, *fill], call.name, mode=modes[ours])


def _masked_fill(to: NetworkWriter, call: Bound) -> str:
    return to.add("Where", [call.given["mask"], _operand(to, call, "value"), call.given["self"]], call.name)


def _rsqrt(to: NetworkWriter, call: Bound) -> str:
    return to.add("Reciprocal", [to.add("Sqrt", [call.given["self"]], f"{call.name}.sqrt")], call.name)


SHAPED = {
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "clone"),
    *("alias", "detach", "expand"),
}
OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(SHAPED - {"expand"}, _reshaped),
    **{
        name: _plain(kind)
        for name, kind in {
            "relu": "Relu",
            "sigmoid": "Sigmoid",
            "tanh": "Tanh",
            "exp": "Exp",
            "log": "Log",
            "erf": "Erf",
            "sqrt": "Sqrt",
            "neg": "Neg",
            "abs": "Abs",
            "reciprocal": "Reciprocal",
            "mish": "Mish",
            "softsign": "Softsign",
            "floor": "Floor",
            "ceil": "Ceil",
            "sin": "Sin",
            "cos": "Cos",
        }.items()
    },
    **{
        name: _plain(kind, "self", "other") for name, kind in {"mul": "Mul", "maximum": "Max", "minimum": "Min"}.items()
    },
    **{
        name: _plain("MatMul", "self", other)
        for name, other in {"matmul": "other", "mm": "mat2", "bmm": "mat2"}.items()
    },
    "pow": _plain("Pow", "self", "exponent"),
    "where": _plain("Where", "condition", "self", "other"),
    "masked_fill": _masked_fill,
    "add": _sum("Add"),
    "sub": _sum("Sub"),
    "div": _divide,
    "rsqrt": _rsqrt,
    "hardtanh": _clip("min_val", "max_val"),
    "clamp": _clip("min", "max"),
    "clamp_min": _clip("min", "max"),
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "silu": _silu,
    "gelu": _attributes("Gelu", approximate="approximate"),
    "leaky_relu": _attributes("LeakyRelu", alpha="negative_slope"),
    "elu": _elu,
    "softplus": _softplus,
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), _attributes("Softmax", axis="dim")),
    "log_softmax": _attributes("LogSoftmax", axis="dim"),
    "expand": _expand,
    **dict.fromkeys(("permute", "transpose", "t"), _transpose),
    "slice": _slice,
    "select": _select,
    "index": _index,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "unbind": _unbind,
    "cat": _concatenate,
    "stack": _stack,
    "mean": _reduce("ReduceMean"),
    "sum": _reduce("ReduceSum"),
    "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"),
    "linalg_vector_norm": _vector_norm,
    "linear": _linear,
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "max_pool2d": _max_pool,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive_average_pool,
    "_adaptive_avg_pool2d": _adaptive_average_pool,
    "pad": _pad,
    "upsample_nearest2d": _resize("nearest"),
    "upsample_bilinear2d": _resize("linear"),
}
