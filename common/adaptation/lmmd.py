"""Local maximum mean discrepancy of DSAN (Zhu et al., "Deep Subdomain Adaptation Network", TNNLS 2020)."""

from typing import Literal

import torch
from torch import Tensor

from common.adaptation.gradient_reversal import reversal_strength

Classes = Literal["shared", "all"]

KERNELS = 5


def lmmd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_probs: Tensor,
    classes: Classes = "shared",
) -> Tensor:
    """Squared distance of the domains' class means in the kernel's feature space, averaged over classes (LMMD).

        1/C sum_c [ ws^T Kss ws + wt^T Ktt wt - 2 ws^T Kst wt ]

    Per class c, ws are the one-hot source labels and wt the target probabilities, each divided by its sum over the
    batch. K is a sum of five Gaussians exp(-||a - b||^2 / bandwidth) around the mean squared distance of the batch,
    see `gaussian_kernel`. Nothing waits for the device. Half precision is computed in float32, inside autocast too.

    Args:
        source, target: (n_s, F) and (n_t, F) features; the batch sizes may differ.
        source_labels: (n_s,) integer classes.
        target_probs: (n_t, C) softmax of the target logits; used as a constant.
        classes: the classes of the mean. ``shared``, as in the authors' code: those among both the source labels and
            the target argmaxes; without any, an exact zero with zero gradients. ``all``, as in the paper: all C; a
            class absent from the source batch then contributes its target term alone, wt^T Ktt wt.
    Returns:
        0-dimensional, float32 or float64.
    Raises:
        ValueError: shapes that do not fit together, an empty batch, or another word for ``classes``.
    """
    _check(source, target, source_labels, target_probs, classes)
    with torch.autocast(source.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
        index = torch.arange(target_probs.shape[1], device=source.device)
        labels = (source_labels[:, None] == index).to(dtype)
        probs = target_probs.detach().to(dtype)
        ws, wt = _per_class(labels), _per_class(probs)
        if classes == "shared":
            predicted = probs.argmax(1, keepdim=True) == index
            averaged = (labels.any(0) & predicted.any(0)).to(dtype)
        else:
            averaged = torch.ones_like(labels[0])
        # signed weights turn the three terms into one: w = (ws, -wt), sum over c of w^T K w
        weights = torch.cat([ws, -wt]) * averaged
        kernel = gaussian_kernel(torch.cat([source.to(dtype), target.to(dtype)]))
        return ((weights @ weights.T) * kernel).sum() / averaged.sum().clamp_min(1)


def lmmd_weight(progress: float) -> float:
    """lambda(p), the ramp of LMMD's weight: the same as `reversal_strength`.

    Args:
        progress: p, the share of all training steps that are done, in [0, 1].
    Raises:
        ValueError: p outside [0, 1].
    """
    return reversal_strength(progress)


def gaussian_kernel(features: Tensor) -> Tensor:
    """Sum over i = 0..4 of exp(-||a - b||^2 / (d 2^i / 4)), d the mean squared distance of distinct samples.

    Args:
        features: (m, F), m >= 2.
    Returns:
        (m, m), the five Gaussians' sum, 5 on the diagonal; d is a constant to the gradient. Identical samples give 5.
    """
    m = len(features)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()
    mean = distances.detach().sum() / (m * (m - 1))
    bandwidth = mean.clamp_min(torch.finfo(mean.dtype).tiny ** 0.5)
    first = -(KERNELS // 2)
    return torch.stack([(-distances / (bandwidth * 2.0**i)).exp() for i in range(first, first + KERNELS)]).sum(0)


def _per_class(weights: Tensor) -> Tensor:
    """Each class column divided by its sum; a column of zeros stays."""
    total = weights.sum(0)
    return torch.where(total > 0, weights / total, 0.0)


def _check(source: Tensor, target: Tensor, source_labels: Tensor, target_probs: Tensor, classes: str) -> None:
    if classes not in ("shared", "all"):
        raise ValueError(f"classes {classes!r}: expected shared or all")
    fits = source.dim() == target.dim() == target_probs.dim() == 2 and source.shape[1] == target.shape[1]
    if not fits or source_labels.shape != source.shape[:1] or len(target_probs) != len(target):
        shapes = ", ".join(str(tuple(t.shape)) for t in (source, target, source_labels, target_probs))
        raise ValueError(f"expected (n_s, F), (n_t, F), (n_s,) and (n_t, C), got {shapes}")
    if not len(source) or not len(target):
        raise ValueError("LMMD of an empty batch")
