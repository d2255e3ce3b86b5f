"""Re-alignment of a trained network to a new domain, by unlabelled images alone and without gradients.

A BatchNorm decides where values fall among a quantizer's thresholds, so its running statistics are what a new domain
moves: thresholds follow, codes stay. AdaBN (Li et al., arXiv 1603.04779) estimates them anew; Schneider et al.
(NeurIPS 2020, arXiv 2006.16971) mix them with the source's as if these came from N0 images of their own. Here a layer
also moves only as far as its shift warrants (``share``), and from where the source's own images would put it, which
is not where training did (common.adaptation.offsets): on images like the source's it stays.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.adaptation.lockstep import Parts, in_step
from common.adaptation.moments import Moments, Norm, eps_of, hooked, of_images, pooled, run, running
from common.adaptation.offsets import as_in_training
from common.errors import UserError
from common.measure.statistics import norms, restore_statistics, statistics_of
from common.quantizers.standardised import StandardisedAct

FEWEST = 8  # images that may go without a prior
AT_ONCE = 32  # images; as many stay in a processor's caches
HELD = 2**31  # bytes of all images that may wait at a layer

PRIOR = 64.0  # N0: how many images the source's statistics count as
SHIFT = 0.1  # d^2 of ``share`` at which they count twice
CHANCE = 3.84  # of what chance makes of d^2 on average: it stays below in 95 % of all draws if channels go together

Statistics = dict[str, Tensor]  # (2, C) float32, mean and variance, by the name of the layer


class _Reached(BaseException):
    """A pass has come as far as it is needed."""


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
def realign(network: nn.Module, images: Tensor, prior: float = PRIOR, held: int = HELD) -> Realigned:
    """Give a network the statistics of new images, mixed with those that it has.

    A layer's statistics are those of all images together, as they reach it through the layers before it, which are
    re-aligned already. This takes one pass; a layer at which too much would wait, and those before it, have one each.
    Neither the order of the images nor how many run together matters but for float32's rounding within a convolution,
    and none is drawn by chance. Learned steps and weights stay.

    Args:
        network: any of this project's with statistics, float too. It is put into evaluation mode.
        images: (n, 3, H, W) float32, normalised, on any device.
        prior: N0 of ``share``.
        held: how many bytes may wait at a layer.
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
        reached = _layers_reached(network, images[:1])
        layers, parts = [norm for _, norm, _ in reached], images.split(AT_ONCE)
        alone = max((place for place, (*_, size) in enumerate(reached, 1) if size * count > held), default=0)
        for norm in layers[:alone]:
            _settle(norm, _seen_by(norm, network, parts), count, prior)
        logits = in_step(network, parts, layers[alone:], lambda norm, seen: _settle(norm, seen, count, prior))
        found = {name: running(norm) for name, norm, _ in reached}
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
    mean, var = running(norm).double()
    eps = eps_of(norm)
    var, new_var = var + eps, moments.var + eps
    apart = ((moments.mean - mean).square() - CHANCE * moments.mean_chance) / var
    apart += ((new_var / var).log().square() - CHANCE * moments.var_chance / new_var.square()) / 2
    scale = norm.weight if isinstance(norm, _BatchNorm) and norm.affine else torch.ones(len(mean))
    weights = scale.detach().double().cpu().square()
    shift = float((weights * apart).sum() / weights.sum().clamp_min(eps))
    return count / (count + prior * (1 + SHIFT / shift)) if shift > 0 else 0.0


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


def _settle(norm: Norm, parts: Parts, count: int, prior: float) -> None:
    means, variances = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    moments, (mean, var) = as_in_training(pooled(means, variances), norm), running(norm).double()
    part = share(moments, norm, count, prior)
    set_statistics(norm, torch.stack((mean.lerp(moments.mean, part), var.lerp(moments.var, part))))


def _layers_reached(network: nn.Module, image: Tensor) -> list[tuple[str, Norm, int]]:
    """The layers with statistics that an image reaches, in that order: name, layer and bytes of its input."""
    names = {norm: name for name, norm in norms(network).items()}
    reached: dict[Norm, int] = {}

    def see(norm: Norm, x: Tensor) -> None:
        reached.setdefault(norm, x.nbytes)

    with hooked(names, see):
        run(network, image)
    if not reached:
        raise UserError("this network has no running statistics, so there is nothing to re-align")
    return [(names[norm], norm, size) for norm, size in reached.items()]


def _seen_by(norm: Norm, network: nn.Module, chunks: tuple[Tensor, ...]) -> Parts:
    parts: Parts = []

    def see(norm: Norm, x: Tensor) -> None:
        parts.append(of_images(x, norm, len(chunk)))
        raise _Reached

    with hooked([norm], see):
        for chunk in chunks:
            with suppress(_Reached):
                run(network, chunk)
    return parts
