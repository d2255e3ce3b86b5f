"""CDAN+E, conditional adversarial adaptation with entropy conditioning (Long et al., NeurIPS 2018)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.adaptation.base import Losses, Objective, Pass
from common.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from common.admm.crp import CRP
from common.data.seeding import generator
from common.flags import count, flag, switch

LARGEST_MAP = 4096  # of the exact multilinear map; a larger one is randomised (section 3.1)
RANDOMISED = 1024


@dataclass(frozen=True)
class CDANOptions:
    cdan_hidden: int = flag(1024, count, "width of CDAN's discriminator")
    cdan_entropy: bool = switch(True, "weigh samples by the certainty of their prediction: CDAN+E")


class ConditionalDiscriminator(nn.Module):
    """(B, F) features and (B, C) class probabilities to (B, 2) domain logits.

    It sees their multilinear map, the F x C products of each sample, or, where these are more than 4096, 1024 products
    of random projections of both (equation 5 of the paper), which are drawn once and never trained.
    """

    feature_projection: Tensor
    class_projection: Tensor

    def __init__(self, features: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.randomised = features * classes > LARGEST_MAP
        width = RANDOMISED if self.randomised else features * classes
        if self.randomised:
            draws = generator("cdan", features, classes)
            self.register_buffer("feature_projection", torch.randn(features, width, generator=draws))
            self.register_buffer("class_projection", torch.randn(classes, width, generator=draws))
        self.layers = nn.Sequential(
            *(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            nn.Linear(hidden, 2),
        )

    def forward(self, features: Tensor, probabilities: Tensor) -> Tensor:
        if self.randomised:
            joint = (features @ self.feature_projection) * (probabilities @ self.class_projection)
            return self.layers(joint / math.sqrt(RANDOMISED))
        return self.layers((probabilities.unsqueeze(2) * features.unsqueeze(1)).flatten(1))


class CDAN(Objective):
    """CE(source classes) + the domain losses of a discriminator of features and predictions, through the reversal.

    Each sample's domain loss is weighed by 1 + exp(-H), H the entropy of its prediction, normalised to mean 1 over a
    domain; predictions and weights are constants, as in the authors' code.
    """

    name = "cdan"
    Options = CDANOptions

    def __init__(self, network: nn.Module, num_classes: int, options: Any = None, crp: CRP | None = None) -> None:
        super().__init__(network, num_classes, options, crp)
        self.heads = ConditionalDiscriminator(self.network.feature_width, num_classes, self.options.cdan_hidden)

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        if target is None:
            return {}
        alpha = reversal_strength(progress)
        return {
            "Source_domain_loss": self._domain_loss(source, 0, alpha),
            "Target_domain_loss": self._domain_loss(target, 1, alpha),
        }

    def domain_logits(self, features: Pass) -> Tensor:
        assert self.heads is not None
        return self.heads(features.known_features(), features.logits.softmax(1))

    def _domain_loss(self, found: Pass, domain: int, alpha: float) -> Tensor:
        assert self.heads is not None
        probabilities = found.logits.detach().float().softmax(1)
        logits = self.heads(reverse_gradient(found.known_features(), alpha), probabilities).float()
        labels = torch.full((len(logits),), domain, dtype=torch.int64, device=logits.device)
        losses = F.cross_entropy(logits, labels, reduction="none")
        if not self.options.cdan_entropy:
            return losses.mean()
        return (certainty(probabilities) * losses).mean()


def certainty(probabilities: Tensor) -> Tensor:
    """1 + exp(-H) of each of (B, C) predictions, H its entropy in nats, divided by the mean over the batch: (B,)."""
    weights = 1 + torch.exp(-torch.special.entr(probabilities).sum(1))
    return weights / weights.mean()
