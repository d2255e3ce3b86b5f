"""Running statistics estimated anew in one cumulative pass over a few batches, of the network as it is quantized.

What keeps statistics is every BatchNorm and every quantizer that standardises by its own (``StandardisedAct``).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.quantizers.learned_scale import scales_from_first_batch
from common.quantizers.standardised import StandardisedAct

Norm = _BatchNorm | StandardisedAct
Statistics = dict[Norm, list[Tensor]]  # copies of the buffers


def norms(model: nn.Module) -> dict[str, Norm]:
    """The modules that keep statistics, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm | StandardisedAct)}
    return {name: module for name, module in found.items() if module.track_running_stats}


def statistics_of(model: nn.Module) -> Statistics:
    return {norm: [buffer.clone() for buffer in norm.buffers()] for norm in norms(model).values()}


@torch.no_grad()
def restore_statistics(statistics: Statistics) -> None:
    for norm, values in statistics.items():
        for buffer, value in zip(norm.buffers(), values, strict=True):
            buffer.copy_(value)
        if isinstance(norm, StandardisedAct):
            norm.see_statistics()


def estimate_statistics(
    model: nn.Module,
    batches: Iterable[Tensor],
    *arguments: object,
    forward: Callable[..., object] | None = None,
) -> None:
    """Give every running mean and variance its average over the images of the batches; the old value is forgotten.

    Of batches with n_b images and a statistic s_b each: s = sum_b n_b s_b / sum_b n_b, computed as it goes, each batch
    counting n_b / (images so far), so that every image counts once (with batches of one size this is torch's
    ``momentum=None``). Every batch is normalised by its own statistics on its way through, as in training; all else,
    dropout for one, is in evaluation mode. Weights, modes and momenta stay as they were, and statistics too where the
    pass fails or no image comes by.

    Args:
        batches: (B, C, H, W) on the model's device, B >= 2; drawn once, none is kept.
        arguments: passed behind the images. forward: what is called with them, and calls the model; None: the model.
    """
    momenta = {norm: norm.momentum for norm in norms(model).values()}
    seen = dict.fromkeys(momenta, 0)
    before = statistics_of(model)
    count = 0  # images of the batch: a layer may see more rows than that, such as windows

    def weigh(norm: Norm, inputs: tuple[Tensor, ...]) -> None:
        if seen[norm] == 0:
            norm.reset_running_stats()
        seen[norm] += count
        norm.momentum = count / seen[norm]

    hooks = [norm.register_forward_pre_hook(weigh) for norm in momenta]
    acts = [norm for norm in momenta if isinstance(norm, StandardisedAct)]
    try:
        for act in acts:
            act.averages_first = False
        with on_batch_statistics(model):
            for batch in batches:
                count = len(batch)
                (forward or model)(batch, *arguments)
    except BaseException:
        restore_statistics(before)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for act in acts:
            act.averages_first = True


@contextmanager
def on_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Within it what keeps statistics is in training mode and all else in evaluation mode, without gradients."""
    with modes_kept(model):
        model.eval()
        for norm in norms(model).values():
            norm.training = True
        with scales_from_first_batch(model), torch.no_grad():
            yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Behind it every module is in training or evaluation as it was before."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
