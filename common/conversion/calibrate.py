"""Statistics and learned steps of a quantized network from a few batches, without labels or gradients."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.measure.statistics import estimate_statistics, on_batch_statistics
from common.quantizers.layers import initialise_weights
from common.quantizers.learned_scale import LearnedScale


def calibrate(model: nn.Module, batches: Iterable[Any], *arguments: Any) -> nn.Module:
    """Initialise the learned steps that have no value yet, then estimate the statistics of every BatchNorm, and of
    every quantizer that has some, anew.

    A step of activations becomes the mean over the batches of its method's initial value. The statistics are cumulative
    averages over the images (``estimate_statistics``), of the network as it is quantized; weights are not touched.

    Args:
        model: any network with this project's quantizers, or a float one.
        batches: a few, two images or more each: images (B, C, H, W), or tuples that begin with them. Kept in memory.
        arguments: passed to the model behind the images.
    Returns:
        ``model``.
    Raises:
        UserError: no batch, or one of a single image.
    """
    images = image_batches(model, batches)
    _initialise_steps(model, images, arguments)
    estimate_statistics(model, images, *arguments)
    return model


def image_batches(model: nn.Module, batches: Iterable[Any]) -> list[Tensor]:
    """The images of the batches, on the model's device."""
    device = next(iter(model.parameters()), torch.empty(0)).device
    images = [(batch if isinstance(batch, Tensor) else batch[0]).to(device) for batch in batches]
    if not images or min(map(len, images)) < 2:
        raise UserError("calibration needs batches of two images or more: give at least one such batch and no smaller")
    return images


def _initialise_steps(model: nn.Module, images: list[Tensor], arguments: tuple[Any, ...]) -> None:
    initialise_weights(model)
    values: dict[LearnedScale, list[Tensor]] = {
        module: [] for module in model.modules() if isinstance(module, LearnedScale) and not module.initialised
    }
    if not values:
        return

    def watch(quantizer: LearnedScale, args: tuple[Tensor, ...]) -> None:
        values[quantizer].append(quantizer.initial_scale(args[0].detach()))

    hooks = [quantizer.register_forward_pre_hook(watch) for quantizer in values]
    try:
        with on_batch_statistics(model):
            for batch in images:
                model(batch, *arguments)
    finally:
        for hook in hooks:
            hook.remove()
    for quantizer, seen in values.items():
        if seen:
            quantizer.set_initial(torch.stack(seen).mean())
