"""Layer by layer on identical input codes: where do two forms of a network disagree, and is it float rounding?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.deploy.graph import trace
from common.deploy.integer import integer_network
from common.deploy.integer_layers import weight_integers
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
            geometry: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
            conv = nn.Conv2d(layer.in_channels, layer.out_channels, *geometry, layer.bias is not None)
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
