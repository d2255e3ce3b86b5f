"""Moments of what reaches a layer with running statistics, image by image and of all together."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.models import class_logits

FAR = 100.0  # E x^2 / var from which E x^2 - m^2 has lost digits; below, it takes a tenth of torch.var_mean's time

Norm = Any  # a _BatchNorm or a StandardisedAct: modules with running_mean and running_var


@dataclass(frozen=True)
class Moments:
    """What a layer sees of n images.

    Attributes:
        mean, var: of a channel over images and pixels, (C,) float64.
        mean_chance, var_chance: the square of what they are off by chance, the images being a sample: the variance of
            their own values over n, (C,) float64.
    """

    mean: Tensor
    var: Tensor
    mean_chance: Tensor
    var_chance: Tensor


def of_images(x: Tensor, norm: Norm, count: int) -> tuple[Tensor, Tensor]:
    """Each image's own mean and variance by channel, (n, C) float64, of a layer's input (n, C, ...).

    Of a ``StandardisedAct``, which has one of each for the whole tensor, (n, 1).

    Args:
        count: n. The input may have several rows of each image, one after another, such as the windows of a Swin; rows
            that are not as many for every image stand for themselves.
    """
    rows = x.detach().float() if isinstance(norm, _BatchNorm) else x.detach().float().reshape(-1, 1)
    parts = count if len(rows) % count == 0 else len(rows)
    rows = rows.reshape(parts, len(rows) // parts, rows.shape[1], -1).transpose(1, 2).flatten(2)
    mean = rows.mean(2).double()
    square = torch.linalg.vector_norm(rows, dim=2).double().square() / rows.shape[2]
    if bool((square.mean(0) > FAR * (square.mean(0) - mean.mean(0).square())).any()):
        mean = rows.double().mean(2)
        square = mean.square() + (rows - mean.float().unsqueeze(2)).square_().mean(2).double()
    return mean, square - mean.square()


def pooled(means: Tensor, variances: Tensor) -> Moments:
    """Those of all pixels of all images together, from ``of_images``."""
    mean, others = means.mean(0), max(len(means) - 1, 1)
    apart = (means - mean).square()
    seconds = variances + apart
    var = seconds.mean(0)
    return Moments(mean, var, apart.mean(0) / others, (seconds - var).square().mean(0) / others)


def running(norm: Norm) -> Tensor:
    """The running mean and variance, (2, C) float32 on the CPU; (2, 1) of a ``StandardisedAct``."""
    return torch.stack((norm.running_mean.reshape(-1), norm.running_var.reshape(-1))).float().cpu()


def eps_of(norm: Norm) -> float:
    """What is added to the variance before it divides."""
    return getattr(norm, "eps", torch.finfo(torch.float32).tiny)


def run(network: nn.Module, images: Tensor) -> Tensor:
    """Logits of images on any device, (B, C) float32 on the CPU."""
    device = next(iter(network.parameters()), images).device
    return class_logits(network, images.to(device)).float().cpu()


@contextmanager
def hooked(layers: Iterable[Norm], see: Callable[[Norm, Tensor], None]) -> Iterator[None]:
    """Within it, ``see`` is called with each layer and its input, before the layer computes."""
    hooks = [norm.register_forward_pre_hook(lambda norm, args: see(norm, args[0])) for norm in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
