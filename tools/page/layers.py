"""The layers of a finished run, rebuilt from its best checkpoint: weights, what they are rounded to, and their size."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from common.deploy.restore import restore
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import FLOAT_BITS
from tools.page.jobs import JobRecord


@dataclass(frozen=True)
class Layer:
    """One convolution: (N,) float weights, the (N,) values they are rounded to (None: float), bits of a weight."""

    name: str
    shape: tuple[int, ...]
    weights: np.ndarray
    values: np.ndarray | None
    bits: int

    @property
    def bytes(self) -> float:
        """Of the weights at ``bits`` each; scales, where a method has them, are not counted."""
        return len(self.weights) * self.bits / 8


@dataclass(frozen=True)
class Network:
    """Its convolutions, and the bytes of everything else that is saved (linear layers, BatchNorm, biases: float)."""

    layers: list[Layer]
    other_bytes: int

    @property
    def bytes(self) -> float:
        return sum(layer.bytes for layer in self.layers) + self.other_bytes

    @property
    def float_bytes(self) -> float:
        return sum(len(layer.weights) * 4 for layer in self.layers) + self.other_bytes


@torch.no_grad()
def read(run: JobRecord) -> Network:
    """Rebuild the network of a run from its model_best.pt.

    Raises:
        UserError: the checkpoint is missing, incomplete, or of another network.
    """
    model, _, _ = restore(run.folder / "checkpoint" / "model_best.pt")
    layers = [_layer(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    total = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return Network(layers, total - sum(4 * len(layer.weights) for layer in layers))


def _layer(name: str, module: nn.Conv2d) -> Layer:
    quantizer = module.weight_quantizer if isinstance(module, QuantConv2d) else nn.Identity()
    bits = getattr(quantizer, "bits", FLOAT_BITS)
    values = quantizer(module.weight).flatten().numpy() if bits < FLOAT_BITS else None
    return Layer(name, tuple(module.weight.shape), module.weight.flatten().numpy(), values, bits)
