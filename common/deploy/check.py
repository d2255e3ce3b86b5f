"""A file against the network it was made from, on the spot."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.deploy.graph import ClassLogits

IMAGES = 8
ROUNDING = 1e-3  # of the logits' spread; float arithmetic alone stays far below


@torch.inference_mode()
def compared(network: nn.Module, logits: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> str:
    """One line: how far a file's logits are from the network's, on ``IMAGES`` images of noise.

    Args:
        network: in evaluation mode, on the CPU. logits: what the file computes of (B, C, H, W).
    """
    images = torch.randn(IMAGES, *image_shape, generator=torch.Generator().manual_seed(1))
    expected, found = ClassLogits(network)(images), logits(images.clone())
    difference, spread = float((found - expected).abs().max()), float(expected.std())
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    line = (
        f"largest difference of logits {difference:.2g}, their spread {spread:.2g}; {same} of {IMAGES} classes the same"
    )
    if difference > ROUNDING * spread:
        line += "; float32 sums on a threshold fall to either side, and tools/parity.py tells them from defects"
    return line
