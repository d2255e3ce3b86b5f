"""Layers that quantize their weight and input: what a quantized network is built of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from common.quantizers.base import QuantAct, WeightQuantizer


class QuantLayer(nn.Module):
    """What a convolution and a Linear layer of a quantized weight and an (optionally quantized) input share.

    It stands before torch's layer among the bases. The bias stays float.

    Attributes:
        shared: its quantized weight within `weights_quantized_once`, else ``None``.
    """

    weight: Tensor
    bias: Any
    shared: Tensor | None = None

    def __init__(
        self,
        *args: Any,
        weight_quantizer: WeightQuantizer | None,
        input_quantizer: QuantAct | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer or nn.Identity()
        self.input_quantizer = input_quantizer or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.weight) if self.shared is None else self.shared
        return self._product(self.input_quantizer(x), weight)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Of a class derived from torch's: its own forward, which finds ``weight`` in the place of the parameter."""
        self.__dict__["weight"] = weight
        try:
            return super().forward(x)
        finally:
            del self.__dict__["weight"]


class QuantConv2d(QuantLayer, nn.Conv2d):
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QuantLinear(QuantLayer, nn.Linear):
    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


def initialise_weights(model: nn.Module) -> None:
    """Set the learned scales of weights that have no value yet from the weights."""
    for module in model.modules():
        if isinstance(module, QuantLayer):
            quantizer = module.weight_quantizer
            if isinstance(quantizer, WeightQuantizer) and not quantizer.initialised:
                quantizer.initialise(module.weight.detach())


def quantized_weights(layers: Sequence[QuantLayer]) -> list[Tensor]:
    return [layer.weight_quantizer(layer.weight) for layer in layers]


@contextmanager
def weights_quantized_once(layers: Sequence[QuantLayer], quantize: Any = quantized_weights) -> Iterator[None]:
    """Within it each weight is quantized once, however often the network runs: for passes between two optimizer steps.

    Args:
        quantize: `quantized_weights`, or a compiled form of it.
    """
    try:
        for layer, weight in zip(layers, quantize(layers), strict=True):
            layer.shared = weight
        yield
    finally:
        for layer in layers:
            layer.shared = None
