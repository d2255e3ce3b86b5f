"""The statistics that ``ours`` and ``apot`` take out of a weight tensor, without overflow, and their gradient."""

import math

import torch
from torch import Tensor

DEGENERATE_STD = 1e-6  # relative to max |w|; at or below it a tensor counts as constant: u = 0, gradient 0


def standardize(w: Tensor) -> tuple[Tensor, Tensor]:
    """(w - mean(w)) / std(w) over the whole tensor, unbiased std, and the 0-dimensional 1 / std(w).

    A tensor of one element, or with std <= 1e-6 max|w|, gives 0 and 0.
    """
    if w.numel() < 2:
        return w - w, w.new_zeros(())  # 0, and NaN for NaN
    low, high = torch.aminmax(w)
    peak = torch.maximum(-low, high).clamp_min(torch.finfo(w.dtype).tiny)  # scaled by it, nothing over- or underflows
    centred = w / peak
    centred.sub_(centred.mean())
    std = torch.linalg.vector_norm(centred) / math.sqrt(w.numel() - 1)  # torch.std_mean takes ten times as long
    inverse = torch.where(std <= DEGENERATE_STD, 0.0, 1 / std)
    return centred.mul_(inverse), inverse / peak


def deviation(w: Tensor) -> Tensor:
    """std(w) over the whole tensor, unbiased, 0-dimensional; 0 with gradient 0 for a constant tensor."""
    return torch.linalg.vector_norm(w - w.mean()) / math.sqrt(max(w.numel() - 1, 1))


def is_constant(w: Tensor) -> Tensor:
    """Whether ``standardize`` takes the tensor for constant, 0-dimensional."""
    return deviation(w.detach()) <= DEGENERATE_STD * w.detach().abs().amax()


def standardize_backward(grad: Tensor, u: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient to w, given that to u = standardize(w): mean and std are differentiated too. Overwrites ``u``."""
    projection = (grad * u).sum() / max(u.numel() - 1, 1)
    return (grad - grad.mean()).sub_(u.mul_(projection)).mul_(inverse_std)
