"""A fast exact path on a CPU: torch's oneDNN int8 convolution, then CDF, rounding, addition and ReLU in one kernel.

Every convolution but the first multiplies uint8 activations with int8 weights and returns float32, BatchNorm folded
into its output scale and bias. The result is the trained network's but for float rounding on a threshold. Two cases
pass 8 bits and stay exact:

- 8-bit weights (2 c - 255 leaves int8) are 2 (c - 128) + 1: the sum is twice that of the int8 codes c - 128, plus the
  sum of the inputs, which one more output channel of ones computes;
- residual sums beyond 255 are split into a low and a high byte, each with a convolution of its own.

Weights are packed when the network is built, for one input shape: packed for another, every call would reorder them.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.deploy.graph import trace
from common.deploy.integer import Codes, Rewriter, Sums
from common.deploy.integer_layers import weight_integers
from common.errors import UserError
from common.quantizers.alignq import AlignAct
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import SQRT_HALF

BYTE = 256
Kind = str  # of a term in a fused sum: see ``fused_kernel``


def fast_network(network: nn.Module, image_shape: tuple[int, int, int, int]) -> nn.Module:
    """The network of "ours" on oneDNN's int8 convolutions: a module from images to class logits.

    Args:
        image_shape: (B, C, H, W) of the images it will get; others are refused.
    Raises:
        UserError: as ``integer_network``; also a quantizer that does not follow a convolution of its own (DenseNet), or
            a build of torch without oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise UserError("this build of torch has no oneDNN; the fast path needs it")
    fast = FastNetwork(_FastRewriter(trace(network)).run(), image_shape)
    fast(torch.zeros(image_shape))  # packs the weights, compiles the kernels
    return fast


class FastNetwork(nn.Module):
    """Runs the rewritten graph on images of the one shape it was made for.

    Raises:
        ValueError: images of another shape.
    """

    def __init__(self, graph: fx.GraphModule, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.graph, self.image_shape = graph, tuple(image_shape)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape) != self.image_shape:
            raise ValueError(f"made for images {self.image_shape}, got {tuple(images.shape)}")
        with torch.inference_mode():  # where the compiled kernels do not ask what a tensor is a view of
            return self.graph(images)


@functools.cache
def fused_kernel(bits: int, kinds: tuple[Kind, ...], wide_output: bool) -> Callable[..., Tensor]:
    """relu(sum of terms) as integers, compiled once for all shapes.

    Args:
        kinds: one per term. "codes": integers as they are. "sum": a pre-activation u, which becomes
            2 round(n Phi(u)) - n. "two": u in two summands, of the low and the high bytes. "+ones": u still lacks its
            last column times a vector of scales. All tensors are flat; with "+ones" they are (pixels, channels).
        wide_output: int16 and not uint8.
    """
    n = 2**bits - 1

    def kernel(*tensors: Tensor) -> Tensor:
        left = list(tensors)
        total: Any = 0
        for kind in kinds:
            value: Tensor = left.pop(0)
            if kind.startswith("two"):
                value = value + left.pop(0)
            if kind.endswith("+ones"):
                value = value[:, :-1] + value[:, -1:] * left.pop(0)
            if kind != "codes":  # the operations of alignq.aligned_position
                value = torch.round(torch.erf(value * SQRT_HALF) * (n / 2) + n / 2) * 2 - n
            total = total + value
        return total.clamp_min(0).to(torch.int16 if wide_output else torch.uint8)

    return torch.compile(kernel, dynamic=True)


@torch.compile(dynamic=True)
def _bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x & (BYTE - 1)).to(torch.uint8), (x >> 8).to(torch.uint8)


class FirstLayer(nn.Module):
    """The float convolution of the image, BatchNorm folded."""

    kind: Kind = "sum"
    weight: Tensor
    bias: Tensor

    def __init__(self, conv: QuantConv2d, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        weight = conv.weight_quantizer(conv.weight).double() * scale[:, None, None, None]
        self.register_buffer("weight", weight.float().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift.float())
        self.geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, images: Tensor) -> list[Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        return [F.conv2d(images, self.weight, self.bias, *self.geometry)]


class Int8Layer(nn.Module):
    """Convolution of integers with int8 weights, BatchNorm folded; gives the tensors of its ``kind``."""

    def __init__(self, conv: QuantConv2d, scale: Tensor, shift: Tensor, high: int) -> None:
        super().__init__()
        weight = weight_integers(conv)
        self.ones_scale = None
        if weight.abs().max() > 127:
            self.ones_scale = scale.float()
            weight = torch.cat(((weight - 1) // 2, torch.ones_like(weight[:1])))
            scale, shift = torch.cat((2 * scale, scale.new_ones(1))), torch.cat((shift, shift.new_zeros(1)))
        self.kind: Kind = ("sum" if high < BYTE else "two") + ("" if self.ones_scale is None else "+ones")
        self.weight, self.shift = weight.to(torch.int8), shift.float()
        self.scales = [scale.float()] if high < BYTE else [scale.float(), BYTE * scale.float()]
        self.zero_point = torch.zeros(len(scale), dtype=torch.int32)
        stride, padding, dilation = (list(getattr(conv, key)) for key in ("stride", "padding", "dilation"))
        self.geometry: Any = (stride, padding, dilation, conv.groups)
        self.packed: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = (x,) if len(self.scales) == 1 else _bytes(x)
        if not self.packed:
            prepack = torch.ops.onednn.qconv_prepack
            self.packed = [prepack(self.weight, s, 1.0, 0, *self.geometry, list(x.shape)) for s in self.scales]
        out = [
            torch.ops.onednn.qconv_pointwise(
                *(part, 1.0, 0, packed, scale, self.zero_point, self.shift if index == 0 else None),
                *(*self.geometry, 1.0, 0, torch.float32, "none", [], ""),
            )
            for index, (part, packed, scale) in enumerate(zip(parts, self.packed, self.scales, strict=True))
        ]
        return out if self.ones_scale is None else [*out, self.ones_scale]


class FusedSum(nn.Module):
    """``fused_kernel`` on tensors in channels-last memory."""

    def __init__(self, bits: int, kinds: tuple[Kind, ...], high: int) -> None:
        super().__init__()
        self.kernel = fused_kernel(bits, kinds, high >= BYTE)
        self.flat = not any(kind.endswith("+ones") for kind in kinds)

    def forward(self, *terms: Tensor | list[Tensor]) -> Tensor:
        tensors = [one for term in terms for one in (term if isinstance(term, list) else [term])]
        rows = [one.permute(0, 2, 3, 1) if one.ndim == 4 else one for one in tensors]  # channels last: contiguous
        batch, height, width = rows[0].shape[:3]
        shape = (-1,) if self.flat else (batch * height * width, -1)
        flat = [one.reshape(shape) if one.ndim == 4 else one for one in rows]
        return self.kernel(*flat).view(batch, height, width, -1).permute(0, 3, 1, 2)


class _FastRewriter(Rewriter):
    """Leaves quantizers and additions pending until the ReLU behind them, where one kernel computes all of it."""

    def __init__(self, source: fx.GraphModule) -> None:
        super().__init__(source)
        self.convolutions: dict[fx.Node, tuple[fx.Node, QuantConv2d, int | None]] = {}
        self.pending: dict[fx.Node, list[tuple[fx.Node, Kind]]] = {}
        self.bits = 0

    def integer_input(self, node: fx.Node) -> fx.Node:
        source = node.all_input_nodes[0]
        if source in self.pending:
            raise UserError(f"{node.name}: the fast path needs a ReLU behind every quantizer")
        return self.new[source]

    def convolution(self, node: fx.Node) -> None:
        codes = self.input(node)[1]
        super().convolution(node)  # for its checks and its meaning
        self.graph.erase_node(self.new[node])
        sums, conv = self.meaning[node], self.layer(node)
        assert isinstance(sums, Sums)
        assert isinstance(conv, QuantConv2d)
        high = codes.high if isinstance(codes, Codes) else None
        if high is None:  # in real values, not in units of the fixed-point first layer
            self.meaning[node] = Sums(torch.ones_like(sums.scale), sums.shift)
        self.convolutions[node] = (self.integer_input(node), conv, high)
        self.new[node] = self.new[node.all_input_nodes[0]]

    def batch_norm(self, node: fx.Node) -> None:
        super().batch_norm(node)
        if (source := node.all_input_nodes[0]) in self.convolutions:
            self.convolutions[node] = self.convolutions[source]

    def identity(self, node: fx.Node) -> None:
        super().identity(node)
        for table in (self.convolutions, self.pending):
            if (source := node.all_input_nodes[0]) in table:
                table[node] = table[source]  # type: ignore[assignment]

    def quantizer(self, node: fx.Node) -> None:
        act, sums, source = self.layer(node), self.sums(node), node.all_input_nodes[0]
        assert isinstance(act, AlignAct)
        if source not in self.convolutions:
            raise UserError(f"{node.target}: the fast path needs a convolution of its own before every quantizer")
        super().quantizer(node)  # for its checks and its meaning
        self.graph.erase_node(self.new[node])
        inputs, conv, high = self.convolutions[source]
        layer = (
            FirstLayer(conv, sums.scale, sums.shift) if high is None else Int8Layer(conv, sums.scale, sums.shift, high)
        )
        self.layers[str(node.target)] = layer
        self.new[node] = self.graph.call_module(str(node.target), (inputs,))
        self.pending[node] = [(self.new[node], layer.kind)]
        self.bits = act.bits

    def add(self, node: fx.Node) -> None:
        super().add(node)
        self.graph.erase_node(self.new[node])
        self.pending[node] = [
            term for one in node.all_input_nodes for term in self.pending.get(one, [(self.new[one], "codes")])
        ]

    def relu(self, node: fx.Node) -> None:
        codes, source = self.codes(node), node.all_input_nodes[0]
        terms = self.pending.get(source, [(self.new.get(source), "codes")])
        name = f"fused_{node.name}"
        self.layers[name] = FusedSum(self.bits, tuple(kind for _, kind in terms), codes.high)
        self.new[node] = self.graph.call_module(name, tuple(term for term, _ in terms))
        self.meaning[node] = replace(codes, low=0)

    def max_pool(self, node: fx.Node) -> None:
        """torch's max_pool2d indexes bytes with bytes: too few for a feature map. float32 holds the codes exactly."""
        source = self.integer_input(node)
        as_float = self.graph.call_method("float", (source,))
        self.new[node.all_input_nodes[0]] = as_float
        super().max_pool(node)
        codes = self.meaning[node]
        assert isinstance(codes, Codes)
        dtype = torch.uint8 if codes.high < BYTE else torch.int16
        self.new[node] = self.graph.call_method("to", (self.new[node], dtype))
        self.new[node.all_input_nodes[0]] = source
