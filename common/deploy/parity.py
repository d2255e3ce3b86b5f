"""Layer by layer on identical input codes: where do two forms of a network disagree, and is it float rounding?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.deploy.graph import trace
from common.deploy.integer import integer_network
from common.deploy.integer_layers import weight_integers
from common.deploy.onnx import open_session
from common.deploy.onnx_nodes import need
from common.deploy.thresholds import Thresholds
from common.quantizers.alignq import AlignAct, aligned_position
from common.quantizers.layers import QuantConv2d, WeightQuantizer


@dataclass(frozen=True)
class LayerParity:
    """Of one activation quantizer.

    Attributes:
        codes: how many were compared. different: how many of them differ.
        distance: of the differing ones, how far the fake-quantized network's real-valued code lies from the threshold
            at most, in steps of the code; float rounding is about n 2^-24 times a few.
    """

    layer: str
    codes: int
    different: int
    distance: float


@torch.no_grad()
def fake_quantized_codes(source: fx.GraphModule, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of every activation quantizer of a traced network: its codes in 0..n, int32, and the same before rounding."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: AlignAct, args: tuple[Tensor], out: Tensor) -> None:
            assert module.grid is not None
            position = aligned_position(args[0].clone(), module.act_range, module.grid)
            found[name] = (module.grid.codes(out).to(torch.int32), position)

        return hook

    return _run_with_hooks(source, images, AlignAct, watch, found)


def in_float64(source: fx.GraphModule) -> fx.GraphModule:
    """The traced network with the same weight levels, computing in float64; changes ``source``."""
    for name, layer in list(source.named_modules()):
        if isinstance(layer, QuantConv2d):
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            arguments: dict[str, Any] = {key: getattr(layer, key) for key in names}
            conv = nn.Conv2d(**arguments, bias=layer.bias is not None)
            assert isinstance(layer.weight_quantizer, WeightQuantizer)
            n = 2**layer.weight_quantizer.bits - 1
            conv.double().weight = nn.Parameter(weight_integers(layer).double() / n, requires_grad=False)
            if layer.bias is not None:
                conv.bias = nn.Parameter(layer.bias.double(), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(source.get_submodule(parent), leaf, conv)
    return source.double()


@torch.no_grad()
def compare_layers(network: nn.Module, images: Tensor, float64: bool = False) -> list[LayerParity]:
    """Fake-quantized against integer, every layer of the latter fed with the former's codes.

    Args:
        network: of "ours". images: (B, C, H, W), normalised.
        float64: let the fake-quantized network compute in float64; differences that remain are not float32's.
    Returns:
        One entry per activation quantizer, in order.
    """
    source = trace(network)
    expected = fake_quantized_codes(*((in_float64(source), images.double()) if float64 else (source, images)))
    rows: dict[str, LayerParity] = {}

    def watch(name: str) -> Any:
        def hook(module: Thresholds, args: tuple[Tensor], out: Tensor) -> Tensor:
            codes, position = expected[name]
            n = 2**module.bits - 1
            rows[name] = compare_codes(name, (out + n) // 2, codes, position)
            return 2 * codes - n  # what the next layers are given

        return hook

    _run_with_hooks(integer_network(network), images, Thresholds, watch, rows)
    return list(rows.values())


def compare_codes(name: str, codes: Tensor, expected: Tensor, position: Tensor) -> LayerParity:
    different = codes != expected
    off = ((position - position.floor()) - 0.5).abs()[different]
    return LayerParity(name, codes.numel(), int(different.sum()), float(off.max()) if len(off) else 0.0)


def _run_with_hooks(graph: fx.GraphModule, images: Tensor, kind: type[nn.Module], watch: Any, found: dict) -> dict:
    hooks = [
        module.register_forward_hook(watch(name)) for name, module in graph.named_modules() if isinstance(module, kind)
    ]
    try:
        graph(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def compare_onnx_layers(network: nn.Module, model: Any, images: Tensor) -> list[LayerParity]:
    """Fake-quantized against an ONNX model, every layer of the latter fed with the former's codes.

    Args:
        model: the ModelProto of ``onnx_model`` or of a loaded file. It is cut open at every activation quantizer: its
            output becomes an output of the model, and those who read it read a new input instead.
    """
    expected = fake_quantized_codes(source := trace(network), images)
    acts: dict[str, Any] = {name: source.get_submodule(name) for name in expected}
    cut = type(model).FromString(model.SerializeToString())
    for node in cut.graph.node:
        node.input[:] = [f"{name}:given" if name in expected else name for name in node.input]
    helper = need("onnx").helper
    for name, (codes, _) in expected.items():
        shape = ["batch", *codes.shape[1:]]
        cut.graph.input.append(helper.make_tensor_value_info(f"{name}:given", 1, shape))
        cut.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
    levels = {f"{name}:given": acts[name].grid.values(codes.float()).numpy() for name, (codes, _) in expected.items()}
    outputs = open_session(cut.SerializeToString()).run(list(expected), {"images": images.numpy(), **levels})
    return [
        compare_codes(name, acts[name].grid.codes(torch.from_numpy(out)).int(), *expected[name])
        for name, out in zip(expected, outputs, strict=True)
    ]
