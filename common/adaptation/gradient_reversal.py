"""Gradient reversal (Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016)."""

import math
from typing import Any

import torch
from torch import Tensor


def reverse_gradient(x: Tensor, alpha: float | Tensor) -> Tensor:
    """The gradient reversal layer: identity forward, -alpha times the gradient backward.

    Args:
        x: any shape.
        alpha: strength, a number or a 0-dimensional tensor, which receives no gradient itself.
    """
    return _ReverseGradient.apply(x, alpha)


def reversal_strength(progress: float) -> float:
    """alpha = 2 / (1 + exp(-10 p)) - 1, the schedule of Ganin et al. with gamma = 10; from 0 to 0.9999.

    Args:
        progress: p, the share of all training steps that are done, in [0, 1].
    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is a share of the training steps, in [0, 1]; got {progress}")
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float | Tensor) -> Tensor:
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.alpha * grad, None
