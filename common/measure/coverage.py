"""How much of a network is quantized: shares of its parameters and of its multiplications, and what stayed float."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.models import class_logits
from common.quantizers.base import QuantAct, Quantizer, WeightQuantizer
from common.quantizers.layers import QuantLayer
from common.quantizers.learned_scale import scales_from_first_batch


@dataclass(frozen=True)
class Coverage:
    """What of a network is quantized.

    Attributes:
        parameters, quantized_parameters: how many there are, and how many of them are weights of a few bits.
        multiplications, quantized_multiplications: of one image, and those of two quantized operands. A sum or an
            average of levels counts as quantized, where a convolution takes it as it is.
        by_weight: those of a quantized weight, whatever the input.
        left_float: by name, each layer that stayed float, whose input did, or that multiplies activations, with the
            reason.
        others: how many float parameters of no such layer there are, by the class of their module or their own name:
            BatchNorms, LayerNorms, embeddings.
    """

    parameters: int
    quantized_parameters: int
    multiplications: int
    quantized_multiplications: int
    by_weight: int
    left_float: dict[str, str]
    others: dict[str, int]

    def line(self) -> str:
        """The shares in one line, and what stayed float by its reason."""
        total = max(self.multiplications, 1)
        names: dict[str, list[str]] = {}
        for name, reason in self.left_float.items():
            names.setdefault(reason.split(" behind ")[0], []).append(name)
        shown = [f"{of[0]}{f' and {len(of) - 1} more' if of[1:] else ''} ({reason})" for reason, of in names.items()]
        others = ", ".join(sorted(self.others, key=lambda kind: -self.others[kind]))
        weights = f" ({_share(self.by_weight, total)} by a quantized weight)"
        return (
            f"quantized: {_share(self.quantized_parameters, max(self.parameters, 1))} of {self.parameters:,} parameters"
            f", {_share(self.quantized_multiplications, total)} of {self.multiplications:,} multiplications"
            f"{weights if self.by_weight != self.quantized_multiplications else ''}"
            f"; float: {'; '.join([*shown, others] if others else shown) or 'nothing'}"
        )

    def shares(self) -> str:
        """Of multiplications and, since a float parameter has four bytes, of the float network's bytes."""
        return (
            f"{_share(self.quantized_multiplications, max(self.multiplications, 1))} of the multiplications, "
            f"{_share(self.quantized_parameters, max(self.parameters, 1))} of the float network's bytes"
        )

    def lines(self) -> list[str]:
        """Every name, a line each, with its reason."""
        return [f"left float: {name}: {reason}" for name, reason in self.left_float.items()]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


@torch.no_grad()
def coverage(network: nn.Module, example: Tensor) -> Coverage:
    """Measure a network, of ``quantize_model`` or of this project, in one evaluation pass of a copy.

    Args:
        example: (B, C, H, W) images, normalised; one is enough.
    """
    copied = copy.deepcopy(network).eval()
    quantized = {name: module for name, module in copied.named_modules() if _has_levels(module)}
    left = _float_layers(copied) | _named_by_conversion(network)
    activations = any(isinstance(module, QuantAct) and module.has_codes for module in copied.modules())
    found: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
            image = args[0].data_ptr() == example.data_ptr()
            work = out.numel() * layer.weight[0].numel()
            found["weight"] += work
            found["both"] += work if activations and not image and not left.get(name, "").startswith("its input") else 0

        return hook

    for name, layer in quantized.items():
        layer.register_forward_hook(count(name))
    with scales_from_first_batch(copied), _every_product_seen(), FlopCounterMode(display=False) as counter:
        class_logits(copied, example)
    weights = {id(layer.weight): layer.weight.numel() for layer in quantized.values()}
    others: Counter[str] = Counter()
    for name, module in copied.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in weights and name not in left and name not in quantized:
                others[_kind(module, key)] += parameter.numel()
    size = len(example)
    return Coverage(
        parameters=sum(parameter.numel() for parameter in copied.parameters()),
        quantized_parameters=sum(weights.values()),
        multiplications=counter.get_total_flops() // 2 // size,
        quantized_multiplications=found["both"] // size,
        by_weight=found["weight"] // size,
        left_float=left,
        others=dict(others),
    )


@contextmanager
def _every_product_seen() -> Iterator[None]:
    """Within it, attention is made of products that the counter knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _named_by_conversion(network: nn.Module) -> dict[str, str]:
    """``left_float`` of a converted network, and of one that is part of another."""
    converted = {name: module for name, module in network.named_modules() if isinstance(module, fx.GraphModule)}
    return {
        f"{prefix}.{name}" if prefix else name: reason
        for prefix, module in converted.items()
        for name, reason in module.meta.get("left_float", {}).items()
    }


def _has_levels(module: nn.Module) -> bool:
    if not isinstance(module, QuantLayer):
        return False
    quantizer = module.weight_quantizer
    return isinstance(quantizer, WeightQuantizer) and quantizer.has_codes


def _kind(module: nn.Module, key: str) -> str:
    """What a float parameter is of: its module's class, or its own name where a converted network keeps it alone."""
    if isinstance(module, Quantizer):
        return "learned scales"
    return key if type(module) is nn.Module or isinstance(module, fx.GraphModule) else type(module).__name__


def _float_layers(network: nn.Module) -> dict[str, str]:
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)}
    return {name: f"a {type(layer).__name__}" for name, layer in layers.items() if not _has_levels(layer)}
