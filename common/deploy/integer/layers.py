"""The layers of an integer network other than its thresholds."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.layers import QuantConv2d

INT32 = torch.iinfo(torch.int32).max
PIXEL = 4.0  # largest magnitude that fixed-point sums are sized for; a normalised pixel stays below 2.7


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
        weight: int8 where they fit, else int16. For "ours" odd integers 2 c - n, which leave int8 at 8 bits.
        high: the largest magnitude of an input; 255 is where it leaves 8 bits.

    Args:
        integers: of the weights, see ``WeightQuantizer.integers``.

    Raises:
        UserError: the largest possible sum does not fit 32 bits.
    """

    weight: Tensor

    def __init__(self, conv: nn.Conv2d, integers: Tensor, high: int, name: str) -> None:
        super().__init__()
        self.high, self.bound = high, _within_32_bits(int(integers.abs().sum((1, 2, 3)).max()) * high, name)
        self.register_buffer("weight", integers.to(torch.int8 if integers.abs().max() < 128 else torch.int16))
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


class Signed(nn.Module):
    """Sums times the sign of their channel's scale, so that the largest sum has the largest real value."""

    sign: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", torch.where(scale < 0, -1, 1).to(torch.int32).view(-1, 1, 1))

    def forward(self, sums: Tensor) -> Tensor:
        return sums * self.sign


class SumsToFloat(nn.Module):
    """The entrance of the last layer where no quantizer follows a convolution: the real values of its sums."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", shift.view(-1, 1, 1))

    def forward(self, sums: Tensor) -> Tensor:
        values = (sums * self.scale + self.shift).float()
        return values.relu() if self.rectified else values


class ToFloat(nn.Module):
    """The entrance of the last layer where it has no pooling: the real value of integers."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        return x * self.unit
