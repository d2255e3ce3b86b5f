"""CDAN+E, conditional adversarial adaptation with entropy conditioning (Long et al., NeurIPS 2018)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation.base import Losses, Objective, Pass, at_least_float32, domain_loss
from common.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from common.admm.crp import CRP
from common.data.seeding import generator
from common.flags import flag, number, switch

LARGEST_MAP = 4096  # of the exact multilinear map; a larger one is randomised
RANDOMISED = 1024
width = number(int, 1, 65536)


@dataclass(frozen=True)
class CDANOptions:
    cdan_hidden: int = flag(1024, width, "width of CDAN's discriminator")
    cdan_entropy: bool = switch(True, "weigh samples by the certainty of their prediction: CDAN+E")


class ConditionalDiscriminator(nn.Module):
    """(B, F) features and (B, C) class probabilities to (B, 2) domain logits.

    It sees their multilinear map, the F x C products of each sample, or, where these are more than 4096, 1024 products
    of random projections of both (section 3.1 of the paper), which are drawn once and never trained.
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

    Both domains pass the discriminator as one batch: a BatchNorm that saw each alone would hide from it how far their
    means lie apart. A sample's domain loss is weighed by 1 + exp(-H), H the entropy of its prediction, normalised to
    mean 1 over its domain. Predictions and weights are constants, as in the authors' later library (tllib); in their
    first code the weights have a gradient. The domains' losses add up, as in the paper; both codes halve the sum.
    """

    name = "cdan"
    Options = CDANOptions
    head_flags = ("cdan_hidden",)

    def __init__(self, network: nn.Module, num_classes: int, options: Any = None, crp: CRP | None = None) -> None:
        super().__init__(network, num_classes, options, crp)
        self.heads = ConditionalDiscriminator(self.network.feature_width, num_classes, self.options.cdan_hidden)

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        if target is None:
            return {}
        assert self.heads is not None
        domains = source, target
        features = reverse_gradient(torch.cat([one.known_features() for one in domains]), reversal_strength(progress))
        predictions = [at_least_float32(one.logits.detach()).softmax(1) for one in domains]
        logits = self.heads(features, torch.cat(predictions)).split([len(one) for one in predictions])
        weights = [certainty(one) if self.options.cdan_entropy else None for one in predictions]
        return {
            "Source_domain_loss": domain_loss(logits[0], 0, weights[0]),
            "Target_domain_loss": domain_loss(logits[1], 1, weights[1]),
        }

    def domain_logits(self, features: Pass) -> Tensor:
        assert self.heads is not None
        return self.heads(features.known_features(), features.logits.softmax(1))


def certainty(probabilities: Tensor) -> Tensor:
    """1 + exp(-H) of each of (B, C) predictions, H its entropy in nats, divided by the mean over the batch: (B,)."""
    weights = 1 + torch.exp(-torch.special.entr(probabilities).sum(1))
    return weights / weights.mean()
