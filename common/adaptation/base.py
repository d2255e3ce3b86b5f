"""What a training step minimises: the base of every objective, and what one has to say of itself.

An objective is one file: its options (flags of its own), its losses by name, modules that it trains beside the network
(a discriminator) where it has any, and one line in ``OBJECTIVES``.
"""

import inspect
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.adaptation.distillation import Distillation
from common.admm.crp import CRP
from common.flags import NoOptions

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """One domain's way through the network: (B, F) features, and (B, C) class logits.

    ``features`` are None for a plain classifier, which shows none.
    """

    features: Tensor | None
    logits: Tensor

    def known_features(self) -> Tensor:
        assert self.features is not None, "objectives that need features are refused for networks without them"
        return self.features


class Objective(ABC):
    """The losses of one step by their published names; "Train_loss" is the sum to descend on.

    Without target images (a warm-up on the source) ``losses`` gets None for the target.

    Attributes:
        name: in ``OBJECTIVES`` and of ``--adaptation``.
        Options: its flags, a frozen dataclass (common.flags).
        adapts: whether it uses target images. discriminates: whether with the network's own discriminator.
        bottleneck: whether a foreign backbone gets a bottleneck for it, of whose features it compares the domains.
        epoch_length: default of --epoch_length, "min" or "max" of the domains' loaders.
        heads: what it trains beside the network: saved, restored and optimised with it. None: nothing.
        head_flags: the flags of ``Options`` that the shapes of its heads follow, which a resumed run must share.
        distillation: a teacher for all images of a step, where the run has one; neither trained nor saved.

    Args:
        network: a classifier; for objectives that adapt one with ``features`` and ``classify``, and perhaps with
            ``discriminate``, of features to domain logits.
        num_classes: C. options: an instance of ``Options``. crp: relation preservation, where the run has it.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    adapts: ClassVar[bool] = True
    discriminates: ClassVar[bool] = False
    epoch_length: ClassVar[str] = "min"
    bottleneck: ClassVar[bool] = False
    heads: nn.Module | None = None
    distillation: Distillation | None = None
    head_flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, network: nn.Module, num_classes: int, options: Any = None, crp: CRP | None = None) -> None:
        self.network: Any = network  # which of features, classify, discriminate it has differs
        self.num_classes, self.crp = num_classes, crp
        self.options: Any = self.Options() if options is None else options

    def __call__(self, source: Tensor, labels: Tensor, target: Tensor | None, progress: float) -> tuple[Losses, Tensor]:
        """
        Args:
            source, target: (B_s, 3, H, W) and (B_t, 3, H, W); labels: (B_s,), the source's.
            progress: share of all steps with adaptation that are done, in [0, 1].
        Returns:
            The losses, and the source's class logits.
        """
        on_source = self._through(source, "source")
        on_target = None if target is None else self._through(target, "target")
        losses = {"Source_class_loss": cross_entropy(on_source.logits, labels)}
        losses |= self.losses(on_source, labels, on_target, progress)
        if self.crp is not None:
            domains = self.crp.domains if target is not None else self.crp.domains[:1]
            losses["Transformation_loss"] = torch.stack([self.crp.penalty(domain) for domain in domains]).sum()
        total = torch.stack([self.weight(name, progress) * value for name, value in losses.items()]).sum()
        if self.distillation is not None:
            images = [source] if target is None else [source, target]
            logits = [one.logits for one in (on_source, on_target) if one is not None]
            losses["Distillation_loss"] = self.distillation.loss(images, logits)
            total = total + self.distillation.weight * losses["Distillation_loss"]
        return {"Train_loss": total, **losses}, on_source.logits

    @abstractmethod
    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        """What comes to the source's class loss, by name; arguments as of the call."""

    def weight(self, name: str, progress: float) -> float:
        """The factor of a loss in the sum."""
        return 1.0

    def domain_logits(self, features: Pass) -> Tensor | None:
        """(B, 2) logits of source and target, by which an evaluation says how well the domains are told apart."""
        return None

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class logits, and domain logits where there are any."""
        found = self.forward(images)
        return found.logits, self.domain_logits(found)

    def forward(self, images: Tensor) -> Pass:
        """One pass of the network; a plain classifier is called as it is."""
        if not shows_features(self.network):
            return Pass(None, self.network(images))
        features = self.network.features(images)
        return Pass(features, self.network.classify(features))

    @property
    def trained(self) -> nn.ModuleList:
        """All that it trains: the network, and the heads where there are any."""
        return nn.ModuleList([self.network, *([] if self.heads is None else [self.heads])])

    def to(self, device: torch.device) -> "Objective":
        self.trained.to(device)
        return self

    def _through(self, images: Tensor, domain: str) -> Pass:
        collecting: AbstractContextManager[None] = self.crp.collect(domain) if self.crp is not None else nullcontext()
        with collecting:
            return self.forward(images)


def shows_features(network: Any) -> bool:
    """Whether it has the methods ``features`` and ``classify``; in a classifier of others such names are its parts."""
    return all(inspect.ismethod(getattr(network, name, None)) for name in ("features", "classify"))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in float32 under autocast too."""
    return F.cross_entropy(at_least_float32(logits), labels)


def domain_loss(domain_logits: Tensor, domain: int, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of (B, 2) domain logits with one domain, 0 the source, 1 the target: its mean over the samples.

    Args:
        weights: (B,), factors of the samples, of mean 1.
    """
    labels = torch.full((len(domain_logits),), domain, dtype=torch.int64, device=domain_logits.device)
    if weights is None:
        return cross_entropy(domain_logits, labels)
    return (weights * F.cross_entropy(at_least_float32(domain_logits), labels, reduction="none")).mean()
