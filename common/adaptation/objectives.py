"""What a cross-domain step minimises: DANN (Ganin et al., JMLR 2016) or DSAN (Zhu et al., TNNLS 2020), and CRP."""

import argparse
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation.gradient_reversal import reversal_strength
from common.adaptation.lmmd import lmmd, lmmd_weight
from common.admm.crp import CRP
from common.engine.meters import cross_entropy

Losses = dict[str, Tensor]


class Objective(ABC):
    """Losses of one step by their published names; "Train_loss" is the sum to descend on.

    Without target images (--src_only_flag, --warmup_epochs) the source's class loss, and CRP on the source, are left.
    """

    def __init__(self, model: nn.Module, options: argparse.Namespace, crp: CRP | None) -> None:
        self.model: Any = model  # its call and ``features`` differ by kind
        self.options, self.crp = options, crp

    def __call__(self, source: Tensor, labels: Tensor, target: Tensor | None, progress: float) -> tuple[Losses, Tensor]:
        """
        Args:
            source, target: (B_s, 3, H, W) and (B_t, 3, H, W); labels: (B_s,), the source's.
            progress: share of all steps with adaptation that are done, in [0, 1].
        Returns:
            The losses, and the source's class logits.
        """
        losses, logits = self.losses(source, labels, target, progress)
        if self.crp is not None:
            domains = self.crp.domains if target is not None else self.crp.domains[:1]
            losses["Transformation_loss"] = torch.stack([self.crp.penalty(domain) for domain in domains]).sum()
        total = torch.stack([self.weight(name, progress) * value for name, value in losses.items()]).sum()
        return {"Train_loss": total, **losses}, logits

    @abstractmethod
    def losses(self, source: Tensor, labels: Tensor, target: Tensor | None, progress: float) -> tuple[Losses, Tensor]:
        """The losses by name, and the source's class logits; arguments as of the call."""

    def weight(self, name: str, progress: float) -> float:
        return 1.0

    @abstractmethod
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class logits, and domain logits where the network has them."""

    def collect(self, domain: str) -> AbstractContextManager[None]:
        return self.crp.collect(domain) if self.crp is not None else nullcontext()


class DANN(Objective):
    """CE(source classes) + CE(domain of source, 0) + CE(domain of target, 1), the latter two through the reversal."""

    def losses(self, source: Tensor, labels: Tensor, target: Tensor | None, progress: float) -> tuple[Losses, Tensor]:
        alpha = reversal_strength(progress)
        with self.collect("source"):
            logits, source_domain = self.model(source, alpha)
        losses = {"Source_class_loss": cross_entropy(logits, labels)}
        if target is not None:
            with self.collect("target"):
                _, target_domain = self.model(target, alpha)
            zeros, ones = (labels.new_full((len(x),), d) for d, x in enumerate((source, target)))
            losses["Source_domain_loss"] = cross_entropy(source_domain, zeros)
            losses["Target_domain_loss"] = cross_entropy(target_domain, ones)
        return losses, logits

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model(images, 0.0)


class DSAN(Objective):
    """CE(source classes) + param lambda(p) LMMD of the bottleneck features."""

    def losses(self, source: Tensor, labels: Tensor, target: Tensor | None, progress: float) -> tuple[Losses, Tensor]:
        with self.collect("source"):
            source_features = self.model.features(source)
        logits = self.model.cls_fc(source_features)
        losses = {"Source_class_loss": cross_entropy(logits, labels)}
        if target is not None:
            with self.collect("target"):
                target_features = self.model.features(target)
            probabilities = self.model.cls_fc(target_features).softmax(1)
            losses["MMD_loss"] = lmmd(
                source_features, target_features, labels, probabilities, self.options.lmmd_classes
            )
        return losses, logits

    def weight(self, name: str, progress: float) -> float:
        return self.options.param * lmmd_weight(progress) if name == "MMD_loss" else 1.0

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model(images), None
