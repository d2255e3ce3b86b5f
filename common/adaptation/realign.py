"""Re-alignment of a trained network to a new domain, by unlabelled images alone and without gradients.

A BatchNorm decides where values fall among a quantizer's thresholds, so its running statistics are what a new domain
moves: thresholds follow, codes stay. AdaBN (Li et al., arXiv 1603.04779) estimates them anew; Schneider et al.
(NeurIPS 2020, arXiv 2006.16971) mix them with the source's as if these came from N0 images of their own. Here a layer
also moves only as far as its shift warrants (``share``): on images like the source's it stays.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.measure.statistics import norms, restore_statistics, statistics_of
from common.models import class_logits
from common.quantizers.standardised import StandardisedAct

FEWEST = 8  # images that may go without a prior
AT_ONCE = 2**30  # bytes of the largest input of a layer with statistics, of all images that are run together

PRIOR = 128.0  # N0: how many images the source's statistics count as
SHIFT = 0.1  # d^2 of ``share`` at which they count twice

FAR = 100.0  # E x^2 / var from which E x^2 - m^2 has lost digits; below, it takes a tenth of torch.var_mean's time

Norm = Any  # a _BatchNorm or a StandardisedAct: modules with running_mean and running_var
Statistics = dict[str, Tensor]  # (2, C) float32, mean and variance, by the name of the layer


class _Reached(BaseException):
    """A pass has come as far as it is needed."""


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


@dataclass(frozen=True)
class Realigned:
    """
    Attributes:
        statistics: those that the network has now, by layer, of the layers that images reach.
        logits: (n, C) float32, of the images in their own order, by the network as it is now; on the CPU.
    """

    statistics: Statistics
    logits: Tensor

    def warning(self) -> str:
        """A line if most of the images are put into one class, else ""; fewer than ``FEWEST`` images say nothing."""
        count, classes = self.logits.shape
        most = int(self.logits.argmax(1).bincount(minlength=classes).max()) / count
        if count < FEWEST or most <= (1 + 1 / classes) / 2:
            return ""
        return (
            f"warning: {100 * most:.0f} % of the images are put into one class after re-alignment; statistics of one "
            "class harm the others: give images of all classes, more of them, or a larger prior"
        )


@torch.no_grad()
def realign(network: nn.Module, images: Tensor, prior: float = PRIOR, at_once: int | None = None) -> Realigned:
    """Give a network the statistics of new images, mixed with those that it has.

    A layer's statistics are those of all images together, as they reach it through the layers before it, which are
    re-aligned already. Where the images fit into memory this takes one pass; otherwise one for each layer. Neither
    their order nor their number at once matters but for float32's rounding within a convolution, and none is drawn by
    chance. Learned steps and weights stay.

    Args:
        network: any of this project's with statistics, float too. It is put into evaluation mode.
        images: (n, 3, H, W) float32, normalised, on any device.
        prior: N0 of ``share``.
        at_once: how many images to run together (default: by ``AT_ONCE``).
    Raises:
        UserError: a network without statistics, fewer than ``FEWEST`` images without a prior, or statistics that are
            not finite; the network is then left as it was.
    """
    refuse_few(len(images), prior)
    before, modes = statistics_of(network), {module: module.training for module in network.modules()}
    order, count = order_of(images), len(images)
    images = images[order]
    try:
        network.eval()
        reached, size = _layers_reached(network, images[:1])
        at_once = at_once or max(1, AT_ONCE // size)
        if count <= at_once:
            with _hooked(reached.values(), lambda norm, x: _settle(norm, [of_images(x, norm, count)], count, prior)):
                logits = _run(network, images)
        else:
            for norm in reached.values():
                _settle(norm, _seen_by(norm, network, images.split(at_once)), count, prior)
            logits = torch.cat([_run(network, chunk) for chunk in images.split(at_once)])
        found = {name: _statistics(norm) for name, norm in reached.items()}
        if not all(bool(one.isfinite().all()) for one in found.values()):
            raise UserError("the statistics of these images are not finite; expected images as the network takes them")
    except BaseException:
        restore_statistics(before)
        for module, training in modes.items():
            module.training = training
        raise
    return Realigned(found, logits[order.argsort()])


def refuse_few(count: int, prior: float) -> None:
    """
    Raises:
        UserError: ``count`` images are too few to do without a prior.
    """
    if count < FEWEST and prior == 0:
        raise UserError(
            f"{count} image{'s' * (count != 1)} without a prior: statistics of so few are worse than the source's; "
            f"give {FEWEST} or more, or a prior above 0"
        )


def share(moments: Moments, norm: Norm, count: int, prior: float) -> float:
    """How far a layer goes from its statistics to those of ``count`` images: n / (n + N0 (1 + SHIFT / d^2)), in [0, 1].

    The source counts as N0 images for a shift that shows, and as more the less it shows; 1 without a prior. d^2 is
    about twice the divergence of two normal distributions, (m - m0)^2 / v0 + ln(v / v0)^2 / 2, without what chance
    alone makes of it: its mean over channels, weighted by the square of BatchNorm's scale, as the next layer sees them.
    """
    if prior == 0:
        return 1.0
    mean, var = _statistics(norm).double()
    eps = getattr(norm, "eps", torch.finfo(torch.float32).tiny)
    var, new_var = var + eps, moments.var + eps
    apart = ((moments.mean - mean).square() - moments.mean_chance) / var
    apart += ((new_var / var).log().square() - moments.var_chance / new_var.square()) / 2
    scale = norm.weight if isinstance(norm, _BatchNorm) and norm.affine else torch.ones(len(mean))
    weights = scale.detach().double().cpu().square()
    shift = float((weights * apart).sum() / weights.sum().clamp_min(eps))
    return count / (count + prior * (1 + SHIFT / shift)) if shift > 0 else 0.0


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
        square = mean.square() + (rows - mean.float().unsqueeze(2)).square_().mean(2).double()
    return mean, square - mean.square()


def pooled(means: Tensor, variances: Tensor) -> Moments:
    """Those of all pixels of all images together, from ``of_images``."""
    mean, others = means.mean(0), max(len(means) - 1, 1)
    apart = (means - mean).square()
    seconds = variances + apart
    var = seconds.mean(0)
    return Moments(mean, var, apart.mean(0) / others, (seconds - var).square().mean(0) / others)


def order_of(images: Tensor) -> Tensor:
    """The places of the images in an order that follows from their content alone, (n,) int64."""
    keys = [hashlib.sha256(image.contiguous().cpu().numpy().tobytes()).digest() for image in images]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))


def set_statistics(norm: Norm, values: Tensor) -> None:
    """(2, C) float32, mean and variance; (2, 1) of a ``StandardisedAct``."""
    mean, var = values.to(norm.running_mean)
    if isinstance(norm, StandardisedAct):
        norm.set_statistics(mean.view(()), var.view(()), batches=1)
    else:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def _statistics(norm: Norm) -> Tensor:
    return torch.stack((norm.running_mean.reshape(-1), norm.running_var.reshape(-1))).float().cpu()


def _settle(norm: Norm, parts: list[tuple[Tensor, Tensor]], count: int, prior: float) -> None:
    means, variances = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    moments, (mean, var) = pooled(means, variances), _statistics(norm).double()
    part = share(moments, norm, count, prior)
    set_statistics(norm, torch.stack((mean.lerp(moments.mean, part), var.lerp(moments.var, part))))


def _layers_reached(network: nn.Module, image: Tensor) -> tuple[dict[str, Norm], int]:
    """The layers with statistics that an image reaches, in that order, and the bytes of the largest input."""
    names = {norm: name for name, norm in norms(network).items()}
    reached: dict[str, Norm] = {}
    sizes = [1]

    def see(norm: Norm, x: Tensor) -> None:
        reached.setdefault(names[norm], norm)
        sizes.append(x.nbytes)

    with _hooked(names, see):
        _run(network, image)
    if not reached:
        raise UserError("this network has no running statistics, so there is nothing to re-align")
    return reached, max(sizes)


def _seen_by(norm: Norm, network: nn.Module, chunks: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    parts: list[tuple[Tensor, Tensor]] = []

    def see(norm: Norm, x: Tensor) -> None:
        parts.append(of_images(x, norm, len(chunk)))
        raise _Reached

    with _hooked([norm], see):
        for chunk in chunks:
            with suppress(_Reached):
                _run(network, chunk)
    return parts


def _run(network: nn.Module, images: Tensor) -> Tensor:
    device = next(iter(network.parameters()), images).device
    return class_logits(network, images.to(device)).float().cpu()


@contextmanager
def _hooked(layers: Iterable[Norm], see: Callable[[Norm, Tensor], None]) -> Iterator[None]:
    hooks = [norm.register_forward_pre_hook(lambda norm, args: see(norm, args[0])) for norm in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
