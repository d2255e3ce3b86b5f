"""The layers of the fast path: plain torch, in the form that torch.compile turns into oneDNN's int8 convolutions.

A convolution of dequantized uint8 with dequantized int8 weights is what Inductor's x86 quantization looks for when
weights are frozen; run eagerly, the same layers compute in float32. BatchNorm is folded into scale and bias.
"""

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operations
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.alignq import AlignAct
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import SQRT_HALF

BYTE = 256
COMPARED_BITS = (2, 3, 4)  # up to seven comparisons are cheaper than erf


class Levels(nn.Module):
    """A pre-activation u to its level 2 round(n Phi(u)) - n in -n..n, float32, n = 2^k - 1.

    Up to 4 bits by the steps of ``thresholds``, here of u. They lie symmetrically around zero, where u passes
    from -1 to 1; so |u| is compared. (At 1 bit the rounding of u = 0, half to even, goes to -1.)
    """

    def __init__(self, act: AlignAct) -> None:
        super().__init__()
        self.n = 2**act.bits - 1
        steps, _ = act.thresholds()
        self.steps: list[float] | None = steps[steps > 0].tolist() if act.bits in COMPARED_BITS else None

    def forward(self, u: Tensor) -> Tensor:
        if self.steps is None:  # the operations of alignq.aligned_position
            return torch.round(torch.erf(u * SQRT_HALF) * (self.n / 2) + self.n / 2) * 2 - self.n
        magnitude = u.abs()
        level = torch.ones_like(u)
        for step in self.steps:
            level = level + torch.where(magnitude >= step, 2.0, 0.0)
        return torch.where(u < 0, -level, level)


class FirstLayer(nn.Module):
    """The float convolution of the image, and its levels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: QuantConv2d, scale: Tensor, shift: Tensor, act: AlignAct) -> None:
        super().__init__()
        weight = conv.weight_quantizer(conv.weight).double() * scale[:, None, None, None]
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift.float())
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.levels = Levels(act)

    def forward(self, images: Tensor) -> Tensor:
        return self.levels(F.conv2d(images, self.weight, self.bias, *self.geometry))


class Int8Layer(nn.Module):
    """Convolution of integers in 0..``high`` (uint8, int32 beyond 255) with int8 weights, and its levels.

    Two cases pass 8 bits and stay exact:

    - 8-bit weights a = 2 c - 255 are 2 (c - 128) + 1: the int8 codes c - 128 are multiplied, and the sum of the inputs
      under the kernel is added;
    - inputs beyond 255, residual sums, are split into a low and a high byte, each with a convolution of its own.

    Raises:
        UserError: 8-bit weights in groups.
    """

    weight: Tensor
    scale: Tensor
    high_scale: Tensor
    sum_scale: Tensor
    bias: Tensor
    zero_point: Tensor

    def __init__(self, conv: QuantConv2d, scale: Tensor, shift: Tensor, high: int, act: AlignAct) -> None:
        super().__init__()
        quantizer: Any = conv.weight_quantizer
        weight, _ = quantizer.integers(conv.weight)
        self.wide_weight, self.wide_input = bool(weight.abs().max() > 127), high >= BYTE
        if self.wide_weight and conv.groups != 1:
            raise UserError("the fast path has no 8-bit weights in groups; use fewer bits")
        if self.wide_weight:
            weight = (weight - 1) // 2
        self.register_buffer("weight", weight.to(torch.int8).contiguous(memory_format=torch.channels_last))
        self.register_buffer("scale", scale.float() * (2 if self.wide_weight else 1))
        # of its own: Inductor knows a convolution as int8 only if nothing else dequantizes the same weights
        self.register_buffer("high_scale", self.scale * BYTE)
        self.register_buffer("sum_scale", scale.float().view(1, -1, 1, 1))
        self.register_buffer("bias", shift.float())
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int64))
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.levels = Levels(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.levels(self.pre_activation(x))

    def pre_activation(self, x: Tensor) -> Tensor:
        if self.wide_input:
            u = self._convolve((x & (BYTE - 1)).to(torch.uint8), self.scale, self.bias)
            u = u + self._convolve((x >> 8).to(torch.uint8), self.high_scale, None)
        else:
            u = self._convolve(x, self.scale, self.bias)
        return u + self._window_sum(x) * self.sum_scale if self.wide_weight else u

    def _convolve(self, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        operations = torch.ops.quantized_decomposed
        inputs = operations.dequantize_per_tensor(x, 1.0, 0, 0, BYTE - 1, torch.uint8)
        weight = operations.dequantize_per_channel(self.weight, scale, self.zero_point, 0, -128, 127, torch.int8)
        return F.conv2d(inputs, weight, bias, *self.geometry)

    def _window_sum(self, x: Tensor) -> Tensor:
        """(B, 1, H', W') float32, exact: the sum of the inputs that each output pixel sees."""
        stride, padding, dilation, _ = self.geometry
        kernel = self.weight.shape[2:]
        channels = x.float().sum(1, keepdim=True)
        if tuple(kernel) == (1, 1) and padding == (0, 0):
            return channels[:, :, :: stride[0], :: stride[1]]
        return F.conv2d(channels, torch.ones(1, 1, *kernel), None, stride, padding, dilation)


class SumAndReLU(nn.Module):
    """relu of a sum of levels and integers in 0..``high``: uint8, int32 beyond 255."""

    def __init__(self, high: int) -> None:
        super().__init__()
        self.dtype = torch.uint8 if high < BYTE else torch.int32

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return sum(others, first.float()).clamp_min(0).to(self.dtype)
