"""Chains of elementwise operations by blocks that stay in a processor's cache, in place of passes over main memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 1 << 16  # of a block: 256 KiB of float32, which the second-level cache of one core holds


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, as flat views of corresponding blocks; whole where blocks gain nothing or cannot be had.

    On an accelerator, while compiling and for tensors whose memory layouts differ, the tensors themselves are the one
    block.
    """
    first = tensors[0]
    whole = first.device.type != "cpu" or torch.compiler.is_compiling() or first.numel() <= ELEMENTS
    if whole or not (_same_layout(tensors, torch.contiguous_format) or _same_layout(tensors, torch.channels_last)):
        yield tensors
        return
    flat = (tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors)
    yield from zip(*(tensor.split(ELEMENTS) for tensor in flat), strict=True)


def _same_layout(tensors: tuple[Tensor, ...], layout: torch.memory_format) -> bool:
    if layout == torch.channels_last and tensors[0].dim() != 4:
        return False
    return all(tensor.is_contiguous(memory_format=layout) for tensor in tensors)
