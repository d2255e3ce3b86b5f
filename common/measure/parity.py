"""Layer by layer on identical input codes: where do two forms of a network disagree, and is it float rounding?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy.extras import need
from common.deploy.graph import refuse_unset, trace
from common.deploy.integer.network import integer_network
from common.deploy.integer.thresholds import Thresholds
from common.deploy.onnx.export import open_session
from common.deploy.openvino import EXACT, core, read_model
from common.measure.rounding_error import bounded_positions
from common.quantizers.base import QuantAct


@dataclass(frozen=True)
class Reference:
    """What the fake-quantized network gives at one activation quantizer.

    Attributes:
        values, codes: its levels, float32, and their codes, int32.
        float64: the codes in float64 arithmetic, the layer given the same input codes.
        distance: how far the real-valued code in float64 lies from a threshold, in steps of the code.
        near: whether that is within what float32 rounding can move it (common.measure.rounding_error).
    """

    values: Tensor
    codes: Tensor
    float64: Tensor
    distance: Tensor
    near: Tensor


@dataclass(frozen=True)
class LayerParity:
    """Of one activation quantizer, or of several.

    Attributes:
        codes: how many were compared. different: how many of them differ from the fake-quantized network's.
        from_float64: how many differ from float64's.
        distance: of those that differ from either, how far the real-valued code lies from the threshold at most, in
            steps of the code.
        unexplained: how many of those lie farther than float32 rounding explains.
    """

    layer: str
    codes: int
    different: int
    from_float64: int
    distance: float
    unexplained: int


def run_watched(graph: nn.Module, images: Tensor, which: Callable[[nn.Module], bool], watch: Any) -> None:
    """Run with ``watch(name, layer, output)`` at some of the layers; what it returns replaces the output."""

    def hook(name: str) -> Any:
        return lambda layer, args, out: watch(name, layer, out)

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in graph.named_modules() if which(layer)]
    try:
        graph(images)
    finally:
        for one in hooks:
            one.remove()


@torch.no_grad()
def quantized_values(source: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of every activation quantizer of a traced network by name, in order."""
    values: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module, out: Tensor) -> None:
        values[name] = out.clone()  # a ReLU behind it may work in place

    run_watched(source, images, lambda layer: isinstance(layer, QuantAct) and layer.has_codes, watch)
    return values


@torch.no_grad()
def references(network: nn.Module, images: Tensor) -> dict[str, Reference]:
    """Of every activation quantizer by name, in order; images (B, C, H, W), normalised."""
    source = trace(network)
    refuse_unset(source.named_modules())
    values = quantized_values(source, images)
    codes = {name: act_of(source, name).codes(out) for name, out in values.items()}
    found = {}
    for name, bounded in bounded_positions(source, images, codes).items():
        distance = (bounded.value - bounded.value.floor() - 0.5).abs()
        near = distance <= bounded.error
        exact = bounded.value.round().to(torch.int32)
        found[name] = Reference(values[name], codes[name], exact, distance.float(), near)
    return found


@torch.no_grad()
def codes_alone(network: nn.Module, images: Tensor) -> dict[str, Reference]:
    """``references`` without float64, for networks whose rounding has no bound here: nothing counts as unexplained."""
    source, found = trace(network), {}
    for name, values in quantized_values(source, images).items():
        codes = act_of(source, name).codes(values)
        found[name] = Reference(values, codes, codes, torch.zeros(codes.shape), torch.ones(codes.shape).bool())
    return found


def act_of(source: nn.Module, name: str) -> QuantAct:
    act = source.get_submodule(name)
    assert isinstance(act, QuantAct)
    return act


def compare(name: str, codes: Tensor, reference: Reference) -> LayerParity:
    different, off = codes != reference.codes, codes != reference.float64
    either = different | off
    return LayerParity(
        name,
        codes.numel(),
        int(different.sum()),
        int(off.sum()),
        float(reference.distance[either].max()) if either.any() else 0.0,
        int((either & ~reference.near).sum()),
    )


def total(name: str, rows: list[LayerParity]) -> LayerParity:
    """All layers as one."""
    codes, different, from_float64, unexplained = (
        sum(getattr(row, what) for row in rows) for what in ("codes", "different", "from_float64", "unexplained")
    )
    distance = max((row.distance for row in rows), default=0.0)
    return LayerParity(name, codes, different, from_float64, distance, unexplained)


def compare_unfed(network: nn.Module, images: Tensor, expected: dict[str, Reference]) -> list[LayerParity]:
    """Another network with the same quantizers, from the images on: for forms that must be exact."""
    source = trace(network)
    values = quantized_values(source, images)
    return [compare(name, act_of(source, name).codes(out), expected[name]) for name, out in values.items()]


@torch.no_grad()
def compare_integer(network: nn.Module, images: Tensor, expected: dict[str, Reference]) -> list[LayerParity]:
    """The integer form, every layer of it fed with the fake-quantized network's codes.

    Args:
        expected: ``references(network, images)``.
    Returns:
        One entry per activation quantizer, in order.
    """
    rows = []

    def watch(name: str, layer: Any, out: Tensor) -> Tensor:
        codes = torch.searchsorted(layer.integers, out.contiguous(), out_int32=True) + layer.low
        rows.append(compare(name, codes, expected[name]))
        return layer.integers[expected[name].codes - layer.low]  # what the next layers are given

    run_watched(integer_network(network), images, lambda layer: isinstance(layer, Thresholds), watch)
    return rows


Engine = Callable[[bytes, list[str], dict[str, Any]], list[Any]]  # (ONNX model, outputs, inputs by name) to arrays


def onnxruntime_run(model: bytes, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
    return open_session(model).run(outputs, inputs)


def openvino_run(model: bytes, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
    found = core().compile_model(read_model(model), "CPU", EXACT)(inputs)
    return [found[name] for name in outputs]


@torch.no_grad()
def compare_onnx(
    network: nn.Module,
    model: Any,
    images: Tensor,
    expected: dict[str, Reference],
    integers: bool = False,
    run: Engine = onnxruntime_run,
) -> list[LayerParity]:
    """An ONNX model, every layer of it fed with the fake-quantized network's codes.

    Args:
        model: the ModelProto of ``onnx_model`` or of a loaded file. It is cut open at every activation quantizer: its
            output becomes an output of the model, and those who read it read a new input instead.
        expected: ``references(network, images)``.
        integers: whether it is the integer graph, in which integers stand for levels.
    """
    source = trace(network)
    cut = type(model).FromString(model.SerializeToString())
    for node in cut.graph.node:
        node.input[:] = [f"{name}:given" if name in expected else name for name in node.input]
    helper = need("onnx").helper
    given = {"images": images.numpy()}
    for name, reference in expected.items():
        shape = ["batch", *reference.codes.shape[1:]]
        cut.graph.input.append(helper.make_tensor_value_info(f"{name}:given", 1, shape))
        cut.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
        stands = standing(act_of(source, name)) if integers else None
        values = reference.values if stands is None else stands[reference.codes - act_of(source, name).code_range()[0]]
        given[f"{name}:given"] = values.float().numpy()
    outputs = run(cut.SerializeToString(), list(expected), given)
    return [
        compare(name, _codes(act_of(source, name), torch.from_numpy(out), integers), expected[name])
        for name, out in zip(expected, outputs, strict=True)
    ]


def standing(act: QuantAct) -> Tensor | None:
    """The integers that stand for a quantizer's levels in the integer graph, (T + 1,); None: the levels themselves."""
    found = act.shifted_integers()
    return None if found is None else found[0]


def _codes(act: QuantAct, out: Tensor, integers: bool) -> Tensor:
    """Those of what a quantizer gave; what stands for none is a code below all others."""
    stands, low = standing(act) if integers else None, act.code_range()[0]
    if stands is None:
        return act.codes(out)
    places = torch.searchsorted(stands.float(), out.contiguous()).clamp_(max=len(stands) - 1)
    return torch.where(stands[places] == out, places + low, low - 1).int()
