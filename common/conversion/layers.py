"""A float layer as a quantized one around the same parameters, torch's own or of a class derived from it."""

import copy
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.layers import QuantConv2d, QuantLayer, QuantLinear


def quantized_layer(layer: Any, weights: WeightQuantizer | None, inputs: QuantAct | None) -> Any:
    """A convolution or Linear layer with quantizers, around the same parameters; the layer itself without any.

    Args:
        layer: an nn.Conv2d or nn.Linear, or of a class derived from one that `takes_its_weight`.
    """
    if weights is None and inputs is None:
        return layer
    new = copy.copy(layer)
    for key in ("_parameters", "_buffers", "_modules"):
        new.__dict__[key] = layer.__dict__[key].copy()
    kind: Any = type(layer)
    new.__class__ = _quantized_class(kind)
    new.weight_quantizer = weights or nn.Identity()
    new.input_quantizer = inputs or nn.Identity()
    return new.to(layer.weight.device).train(layer.training)


@cache
def _quantized_class(kind: Any) -> type[QuantLayer]:
    known: dict[type[nn.Module], type[QuantLayer]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
    return known.get(kind) or type(f"Quant{kind.__name__}", (QuantLayer, kind), {})


def takes_its_weight(layer: nn.Module) -> bool:
    """Whether a layer derived from nn.Conv2d or nn.Linear multiplies by its weight as it is, and by nothing else.

    So do those that pad their input themselves; one that standardises its weight does not. It is tried on zeros.
    """
    weight: Any = layer._parameters.get("weight")
    if weight is None or not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    if type(layer) in (nn.Conv2d, nn.Linear):
        return True
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    sides = () if isinstance(layer, nn.Linear) else (64, 64)
    try:
        with torch.no_grad(), _Products() as products:
            layer(weight.new_zeros(1, channels, *sides))
    except Exception:  # a user's forward fails in whatever way its code says
        return False
    return len(products.weights) == 1 and products.weights[0] is weight


class _Products(TorchFunctionMode):
    """Watches what is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.linear, torch.matmul):
            self.weights.append(args[1] if len(args) > 1 else (kwargs or {}).get("weight"))
        return func(*args, **(kwargs or {}))
