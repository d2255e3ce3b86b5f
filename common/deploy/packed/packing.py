"""Quantized weights as codes of k bits in bytes.

Every method's weights are scale * levels[code]: an ascending table of levels that all layers of a network share, and a
scale for each layer or filter. The product is the very multiplication that ends the method's own formula, so decoding
gives back its floats exactly (only a negative zero comes back as zero).
"""

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.alignq import AlignWeight
from common.quantizers.apot import APoTWeight
from common.quantizers.bwn import BinaryWeight
from common.quantizers.dorefa import DoReFaWeight
from common.quantizers.layers import LearnedScale, WeightQuantizer
from common.quantizers.llsq import LLSQWeight
from common.quantizers.lsq import LSQWeight
from common.quantizers.rounding import exact_grid
from common.quantizers.uniform import UniformWeight


def code_bits(levels: Tensor) -> int:
    """The bits of a code for so many levels: k for up to 2^k of them."""
    return (len(levels) - 1).bit_length()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes in a stream of bits, the lowest bit of each first, filled up to whole bytes with zeros.

    Args:
        codes: integers in [0, 2^bits), any shape, taken in row-major order; bits: 1 to 9.
    Returns:
        (ceil(N bits / 8),) uint8.

    >>> pack(torch.tensor([1, 2, 3]), 2).tolist()
    [57]
    """
    stream = (codes.flatten().short().unsqueeze(1) >> torch.arange(bits, dtype=torch.int16)).bitwise_and_(1).byte()
    stream = torch.nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8))
    return (stream.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of a stream that ``pack`` made.

    Args:
        stream: (ceil(count bits / 8),) uint8.
    Returns:
        (count,) int16.

    >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, 3).tolist()
    [1, 2, 3]
    """
    flat = (stream.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)).bitwise_and_(1).flatten()
    digits = flat[: count * bits].view(count, bits).short()
    return (digits << torch.arange(bits, dtype=torch.int16)).sum(1, dtype=torch.int16)


def levels_of(quantizer: WeightQuantizer, dtype: torch.dtype = torch.float32) -> Tensor:
    """The table of levels, (L,) and ascending, before they are multiplied by a scale.

    2^k levels, 2^k - 1 for apot, 2^(k+1) - 1 for ``--levels published``.

    Args:
        dtype: float32 gives the levels that the network multiplies, float64 what these are the rounded values of.
    Raises:
        UserError: a quantizer of a method that is not listed here.
    """
    bits = quantizer.bits
    match quantizer:
        case AlignWeight():
            grid = quantizer.grid
            assert grid is not None
            n = 2**bits - 1
            return grid.values(torch.arange(-n if grid.offset == 0 else 0, n + 1, dtype=dtype))
        case BinaryWeight() | DoReFaWeight(bits=1):
            return torch.tensor([-1.0, 1.0], dtype=dtype)
        case UniformWeight() | DoReFaWeight():
            return exact_grid(bits, 1.0).values(torch.arange(2**bits, dtype=dtype))
        case LSQWeight() | LLSQWeight():
            return torch.arange(quantizer.low, quantizer.high + 1, dtype=dtype)
        case APoTWeight():
            return torch.cat((-quantizer.levels[1:].flip(0), quantizer.levels)).to(dtype)
    raise UserError(f"weights of {type(quantizer).__name__} have no packed form; packing.py lists those")


def scales_of(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """What the levels of a layer are multiplied by: (1,) for the layer, or (filters,) one for each."""
    match quantizer:
        case LearnedScale():
            return quantizer.current_scale(weight).reshape(1)
        case UniformWeight():
            return weight.abs().amax().reshape(1)
        case BinaryWeight() | DoReFaWeight(bits=1):
            per_filter = isinstance(quantizer, BinaryWeight) and quantizer.per_filter
            return quantizer(weight).abs().flatten(1 if per_filter else 0).amax(-1).reshape(-1)
    return torch.ones(1)


@torch.no_grad()
def codes_of(quantizer: WeightQuantizer, weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The codes and the scales of a layer's quantized weight.

    Args:
        weight: (filters, ...) float32, as trained. levels: ``levels_of(quantizer)``.
    Returns:
        Codes in weight's shape, int64, and scales, (1,) or (filters,) float32.
    Raises:
        ValueError: the quantized weight holds a value that is not among the levels, such as NaN.
    """
    values, scales = quantizer(weight), scales_of(quantizer, weight)
    table = scales.unsqueeze(1) * levels
    codes = torch.searchsorted(table, values.reshape(len(scales), -1)).clamp_(max=len(levels) - 1).view_as(values)
    if not torch.equal(from_codes(codes, scales, levels), values):
        raise ValueError("a quantized weight is not among its levels")
    return codes, scales


def from_codes(codes: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """The quantized weight, in the codes' shape, that ``codes_of`` was given."""
    return (levels[codes].view(len(scales), -1) * scales.unsqueeze(1)).view(codes.shape)


def encode(quantizer: WeightQuantizer, weight: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """``codes_of`` with the codes packed: (ceil(numel k / 8),) uint8, and the scales."""
    codes, scales = codes_of(quantizer, weight, levels)
    return pack(codes, code_bits(levels)), scales


def decode(stream: Tensor, scales: Tensor, levels: Tensor, shape: torch.Size) -> Tensor:
    """The quantized weight, of ``shape``, that ``encode`` was given.

    Raises:
        ValueError: a code beyond the levels.
    """
    codes = unpack(stream, code_bits(levels), shape.numel()).int()
    if len(codes) and int(codes.max()) >= len(levels):
        raise ValueError(f"code {int(codes.max())} where there are {len(levels)} levels")
    return from_codes(codes.view(shape), scales, levels)


class DecodedAlignWeight(AlignWeight):
    """In place of the quantizer of "ours" where the weights are its levels already; says which grid they lie on."""

    def __init__(self, origin: AlignWeight) -> None:
        WeightQuantizer.__init__(self, origin.bits)
        self.grid, self.slope = origin.grid, None

    def forward(self, w: Tensor) -> Tensor:
        return w


def decoded(quantizer: nn.Module) -> WeightQuantizer | nn.Identity:
    """What stands in a network for ``quantizer`` once ``decode`` has filled in its weights."""
    return DecodedAlignWeight(quantizer) if isinstance(quantizer, AlignWeight) else nn.Identity()
