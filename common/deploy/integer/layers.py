"""The layers of an integer network other than its thresholds."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.alignq import AlignWeight
from common.quantizers.layers import QuantConv2d

INT32 = torch.iinfo(torch.int32).max
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
        self.bound = INT32 - 1

    def forward(self, images: Tensor) -> Tensor:
        sums = F.conv2d(images, self.weight, None, *self.geometry).double() / self.unit
        return torch.round(sums).clamp(-self.bound, self.bound).to(torch.int32)


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
        self.high, self.bound = high, _within_32_bits(int(weight.abs().sum((1, 2, 3)).max()) * high, name)
        self.register_buffer("weight", weight.to(torch.int8 if weight.abs().max() < 128 else torch.int16))
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.dilation = conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        # torch has no dilated convolution of integers; float64 holds the sums exactly
        dtype = torch.int32 if self.dilation == (1, 1) else torch.float64
        return F.conv2d(x.to(dtype), self.weight.to(dtype), None, *self.geometry).to(torch.int32)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)} {self.weight.dtype}, inputs up to {self.high}, sums to {self.bound}"


class SumPool(nn.Module):
    """Sums over windows; rows and columns that fill no window are dropped, as in avg_pool2d.

    Args:
        kernel, stride: of rows and columns. bound: the largest magnitude of an input.

    Raises:
        UserError: the largest possible sum does not fit 32 bits.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], bound: int, name: str) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.bound = _within_32_bits(bound * math.prod(kernel), name)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        return windows.sum((4, 5), dtype=torch.int32)


def _within_32_bits(bound: int, name: str) -> int:
    if bound >= INT32:
        raise UserError(f"{name}: sums of up to {bound} do not fit 32 bits; use fewer bits")
    return bound


class PixelMean(nn.Module):
    """The entrance of the last layer: an integer sum over the pixels, then floats."""

    def __init__(self, unit: float, keepdim: bool) -> None:
        super().__init__()
        self.unit, self.keepdim = unit, keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.sum((2, 3), self.keepdim, dtype=torch.int32) * (self.unit / (x.shape[2] * x.shape[3]))


class ToFloat(nn.Module):
    """The entrance of the last layer where it has no pooling: the real value of integers."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return x * self.unit
