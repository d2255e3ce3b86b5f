"""Quantized weights as codes of k bits in bytes.

Every method's weights are scale * levels[code]: an ascending table of levels that all layers of a network share, and a
scale for each layer or filter. The product is the very multiplication that ends the method's own formula, so decoding
gives back its floats exactly (only a negative zero comes back as zero).
"""

import torch
from torch import Tensor

from common.quantizers.base import WeightQuantizer


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


def from_codes(codes: Tensor, scales: Tensor, levels: Tensor) -> Tensor:
    """The quantized weight, in the codes' shape: scales, (1,) or (filters,), times the levels of the codes."""
    return (levels[codes].view(len(scales), -1) * scales.unsqueeze(1)).view(codes.shape)


def encode(quantizer: WeightQuantizer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's quantized weight as packed codes, (ceil(numel k / 8),) uint8, and its scales.

    Raises:
        ValueError: as ``WeightQuantizer.codes``.
    """
    return pack(quantizer.codes(weight), code_bits(quantizer.levels())), quantizer.scales(weight)


def decode(stream: Tensor, scales: Tensor, levels: Tensor, shape: torch.Size) -> Tensor:
    """The quantized weight, of ``shape``, that ``encode`` was given.

    Raises:
        ValueError: a code beyond the levels.
    """
    codes = unpack(stream, code_bits(levels), shape.numel()).int()
    if len(codes) and int(codes.max()) >= len(levels):
        raise ValueError(f"code {int(codes.max())} where there are {len(levels)} levels")
    return from_codes(codes.view(shape), scales, levels)


class DecodedWeight(WeightQuantizer):
    """In place of a layer's quantizer where the weights are its levels already; says what they are, as that one did."""

    def __init__(self, origin: WeightQuantizer, scales: Tensor) -> None:
        super().__init__(origin.bits)
        for dtype in (torch.float32, torch.float64):
            self.register_buffer(str(dtype).removeprefix("torch."), origin.levels(dtype), persistent=False)
        self.register_buffer("factors", scales, persistent=False)

    def forward(self, w: Tensor) -> Tensor:
        return w

    def levels(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.get_buffer(str(dtype).removeprefix("torch."))

    def scales(self, weight: Tensor) -> Tensor:
        return self.get_buffer("factors")
