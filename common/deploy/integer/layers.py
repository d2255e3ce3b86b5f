"""The layers of an integer network other than its thresholds."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.alignq import AlignWeight
from common.quantizers.layers import QuantConv2d

PIXEL = 4.0  # largest magnitude that fixed-point sums are sized for; a normalised pixel stays below 2.7


def weight_integers(conv: QuantConv2d) -> Tensor:
    """The weights of a convolution of "ours" as odd integers 2 c - n, int32; the level is that over n = 2^k - 1."""
    quantizer = conv.weight_quantizer
    assert isinstance(quantizer, AlignWeight)
    assert quantizer.grid is not None
    codes = quantizer.grid.codes(quantizer(conv.weight.detach()).double())
    return (2 * codes - (2**quantizer.bits - 1)).to(torch.int32)


class FirstConv(nn.Module):
    """The convolution of the float image with quantized weights; sums leave as int32 in units of ``unit``.

    The unit is the power of two that lets images of magnitude ``PIXEL`` just fit. A larger sum saturates, beyond every
    threshold that normalised images can meet. The bias is left to the thresholds.
    """

    weight: Tensor

    def __init__(self, conv: QuantConv2d) -> None:
        super().__init__()
        levels = conv.weight_quantizer(conv.weight.detach())
        self.register_buffer("weight", levels)
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        largest = float(levels.abs().sum((1, 2, 3)).max()) * PIXEL
        self.unit = 2.0 ** (math.ceil(math.log2(largest)) - 31)

    def forward(self, images: Tensor) -> Tensor:
        sums = F.conv2d(images, self.weight, None, *self.geometry).double() / self.unit
        limit = torch.iinfo(torch.int32).max - 1
        return torch.round(sums).clamp(-limit, limit).to(torch.int32)


class IntegerConv2d(nn.Module):
    """Convolution of integers, int32 to int32. The bias is left to the thresholds.

    Attributes:
        weight: odd integers 2 c - n: int8 up to 7 bits, int16 at 8.
        high: the largest input; 255 is where it leaves 8 bits.

    Raises:
        UserError: the largest possible sum does not fit 32 bits.
    """

    weight: Tensor

    def __init__(self, conv: QuantConv2d, high: int, name: str) -> None:
        super().__init__()
        weight = weight_integers(conv)
        bound = int(weight.abs().sum((1, 2, 3)).max()) * high
        if bound >= torch.iinfo(torch.int32).max:
            raise UserError(f"{name}: sums of up to {bound} do not fit 32 bits; use fewer bits")
        self.high, self.bound = high, bound
        self.register_buffer("weight", weight.to(torch.int8 if weight.abs().max() < 128 else torch.int16))
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(torch.int32), None, *self.geometry)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)} {self.weight.dtype}, inputs up to {self.high}, sums to {self.bound}"


class SumPool(nn.Module):
    """Sums over ``kernel`` x ``kernel`` windows; rows and columns that fill no window are dropped, as in avg_pool2d."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel
        windows = x.unfold(2, k, k).unfold(3, k, k)
        return windows.sum((4, 5), dtype=torch.int32)


class PixelMean(nn.Module):
    """The entrance of the last layer: an integer sum over the pixels, then floats."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3), dtype=torch.int32) * (self.unit / (x.shape[2] * x.shape[3]))


class ToFloat(nn.Module):
    """The entrance of the last layer where it has no pooling: the real value of integers."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return x * self.unit
