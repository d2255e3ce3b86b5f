"""Layer by layer on identical input codes: where do two forms of a network disagree, and is it float rounding?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.deploy.extras import need
from common.deploy.graph import refuse_unset, trace
from common.deploy.integer.network import integer_network
from common.deploy.integer.thresholds import Thresholds
from common.deploy.onnx.export import open_session
from common.measure.rounding_error import bounded_positions
from common.quantizers.layers import QuantAct


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


@torch.no_grad()
def compare_onnx(network: nn.Module, model: Any, images: Tensor, expected: dict[str, Reference]) -> list[LayerParity]:
    """An ONNX model, every layer of it fed with the fake-quantized network's codes.

    Args:
        model: the ModelProto of ``onnx_model`` or of a loaded file. It is cut open at every activation quantizer: its
            output becomes an output of the model, and those who read it read a new input instead.
        expected: ``references(network, images)``.
    """
    source = trace(network)
    cut = type(model).FromString(model.SerializeToString())
    for node in cut.graph.node:
        node.input[:] = [f"{name}:given" if name in expected else name for name in node.input]
    helper = need("onnx").helper
    for name, reference in expected.items():
        shape = ["batch", *reference.codes.shape[1:]]
        cut.graph.input.append(helper.make_tensor_value_info(f"{name}:given", 1, shape))
        cut.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
    given = {f"{name}:given": reference.values.numpy() for name, reference in expected.items()}
    session = open_session(cut.SerializeToString())
    outputs = session.run(["logits", *expected], {"images": images.numpy(), **given})[1:]
    return [
        compare(name, act_of(source, name).codes(torch.from_numpy(out)), expected[name])
        for name, out in zip(expected, outputs, strict=True)
    ]


@torch.no_grad()
def compare_fast(
    network: nn.Module, images: Tensor, expected: dict[str, Reference], compiled: bool = True
) -> list[LayerParity]:
    """The layers of the fast path, every one of them fed with the fake-quantized network's codes.

    Args:
        network: of "ours". expected: ``references(network, images)``.
        compiled: to int8, as they are deployed; otherwise they run in float32.
    """
    from common.deploy.integer.fast import (  # its import brings Inductor, which takes a second
        compile_frozen,
        fast_graph,
    )

    graph = cut_open(fast_graph(network), list(expected))
    levels = {name: 2 ** act_of(network, name).bits - 1 for name in expected}
    given = [(2 * expected[name].codes - n).float() for name, n in levels.items()]
    inputs = [part.contiguous(memory_format=torch.channels_last) for part in (images, *given)]
    outputs = (compile_frozen(graph, *inputs) if compiled else graph)(*inputs)
    return [
        compare(name, ((out + n) / 2).int(), expected[name])
        for (name, n), out in zip(levels.items(), outputs, strict=True)
    ]


def cut_open(graph: fx.GraphModule, names: list[str]) -> fx.GraphModule:
    """The graph cut at the layers of these names: takes images and in place of each layer's output what is given, and
    returns a tuple of what the layers give. Changes ``graph``."""
    layers = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    (images,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    with graph.graph.inserting_after(images):
        given = [graph.graph.placeholder(f"given_{number}") for number in reversed(range(len(names)))][::-1]
    for name, node in zip(names, given, strict=True):
        layers[name].replace_all_uses_with(node)
    graph.graph.output_node().args = (tuple(layers[name] for name in names),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
