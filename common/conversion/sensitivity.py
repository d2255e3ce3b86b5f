"""Which quantizer of a network costs how much: each alone against float, and each left out of the quantized network."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.conversion.calibrate import image_batches
from common.errors import UserError
from common.measure.statistics import estimate_statistics, modes_kept, restore_statistics, statistics_of
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantLayer


@dataclass(frozen=True)
class Effect:
    """What a set of quantizers does to the outputs.

    Attributes:
        error: ||y - y_float|| / ||y_float|| over the outputs of all batches.
        top1: accuracy in per cent; None without labels.
    """

    error: float
    top1: float | None


@dataclass(frozen=True)
class Row:
    """A quantizer: its layer, "weights", "input" (of the layer) or "activations", and its bits.

    Attributes:
        layer: in a converted network, activations are named after the layer that they come from.
        alone: with this quantizer alone, all else float. without: with all but this one.
    """

    layer: str
    what: str
    bits: int
    alone: Effect
    without: Effect


@dataclass(frozen=True)
class Sensitivity:
    """The float network, the quantized one, and a row for each quantizer in the order of the network."""

    float_network: Effect
    quantized: Effect
    rows: list[Row]

    def table(self) -> str:
        """Markdown, the quantizer that does most harm alone first. Errors are ``Effect``'s."""

        def cells(effect: Effect) -> str:
            return f"{effect.error:.4f} | " + ("" if effect.top1 is None else f"{effect.top1:.2f}")

        lines = [
            "| layer | quantizer | bits | it alone: error | top-1 | all but it: error | top-1 |",
            "|---|---|---:|---:|---:|---:|---:|",
            f"| (none quantized) | | | {cells(self.float_network)} | | |",
            f"| (all quantized) | | | | | {cells(self.quantized)} |",
        ]
        for row in sorted(self.rows, key=lambda row: -row.alone.error):
            lines.append(f"| {row.layer} | {row.what} | {row.bits} | {cells(row.alone)} | {cells(row.without)} |")
        return "\n".join(lines)


def sensitivity(model: nn.Module, batches: Iterable[Any], *arguments: Any) -> Sensitivity:
    """Measure every quantizer's share in the error of a quantized network.

    Quantizing changes the scale of what a BatchNorm sees, so each of the 2 Q + 2 networks compared, the float one too,
    first has its BatchNorm statistics estimated on these batches; the model's own are put back. Twice Q times twice the
    batches are run: a few small ones do.

    Args:
        model: calibrated or trained. batches: images, or (images, labels), two images or more each.
        arguments: passed to the model behind the images.
    Raises:
        UserError: no quantizer, or one without its learned step; no batch, or one of a single image.
    """
    quantizers = dict(_places(model))
    if not quantizers:
        raise UserError(f"{type(model).__name__} has no quantizer to measure; quantize it first")
    if fresh := [layer for module, (layer, _) in quantizers.items() if not module.initialised]:
        raise UserError(f"the learned step of {fresh[0]} has no value yet; calibrate or train the network first")
    batches = list(batches)
    images = image_batches(model, batches)
    labels = None if any(isinstance(batch, Tensor) for batch in batches) else torch.cat([batch[1] for batch in batches])
    before = statistics_of(model)

    def outputs(off: Iterable[Quantizer]) -> Tensor:
        with _switched_off(off), torch.no_grad():
            estimate_statistics(model, images, *arguments)
            return torch.cat([_logits(model(batch, *arguments)) for batch in images]).float().cpu()

    def effect(off: Iterable[Quantizer]) -> Effect:
        y = outputs(off)
        top1 = None if labels is None else 100 * float((y.argmax(1) == labels.cpu()).float().mean())
        return Effect(float((y - reference).norm() / reference.norm()), top1)

    try:
        with modes_kept(model):
            model.eval()
            reference = outputs(quantizers)
            rows = [
                Row(layer, what, one.bits, effect(other for other in quantizers if other is not one), effect([one]))
                for one, (layer, what) in quantizers.items()
            ]
            return Sensitivity(effect(quantizers), effect([]), rows)
    finally:
        restore_statistics(before)


def _places(model: nn.Module) -> Iterator[tuple[Quantizer, tuple[str, str]]]:
    owned: dict[nn.Module, tuple[str, str]] = dict(_behind(model)) if isinstance(model, fx.GraphModule) else {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):
            owned[module.weight_quantizer] = (name, "weights")
            owned[module.input_quantizer] = (name, "input")
        if isinstance(module, Quantizer):
            yield module, owned.get(module, (name, "activations"))


def _behind(network: fx.GraphModule) -> Iterator[tuple[nn.Module, tuple[str, str]]]:
    """The activation quantizers of a converted network, each with the layer before it (a node's name if not unique)."""
    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    for node in nodes:
        quantizer = network.get_submodule(str(node.target))
        if isinstance(quantizer, Quantizer):
            (before,) = node.all_input_nodes
            yield quantizer, (str(before.target) if calls[before.target] == 1 else before.name, "activations")


def _logits(output: Any) -> Tensor:
    """A network's output, the first where it has several (the classes of a DANN)."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _switched_off(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """Meanwhile these quantizers give back what they are given."""
    hooks = [quantizer.register_forward_hook(lambda _, args, output: args[0]) for quantizer in quantizers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
