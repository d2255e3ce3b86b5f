"""DANN, domain-adversarial training (Ganin et al., JMLR 2016)."""

from typing import Any

from torch import Tensor, nn

from common.adaptation.base import Losses, Objective, Pass, domain_loss
from common.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from common.admm.crp import CRP


class DANN(Objective):
    """CE(source classes) + CE(domain of source, 0) + CE(domain of target, 1), the latter two through the reversal.

    The discriminator is the network's own; for a network without one it is a linear layer on the features.
    """

    name = "dann"
    discriminates = True

    def __init__(self, network: nn.Module, num_classes: int, options: Any = None, crp: CRP | None = None) -> None:
        super().__init__(network, num_classes, options, crp)
        if not hasattr(network, "discriminate"):
            self.heads = nn.Linear(self.network.feature_width, 2)

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        alpha = reversal_strength(progress)
        of_source = self._discriminate(reverse_gradient(source.known_features(), alpha))
        if target is None:  # the discriminator has seen the source all the same: its running statistics
            return {}
        of_target = self._discriminate(reverse_gradient(target.known_features(), alpha))
        return {"Source_domain_loss": domain_loss(of_source, 0), "Target_domain_loss": domain_loss(of_target, 1)}

    def domain_logits(self, features: Pass) -> Tensor:
        return self._discriminate(features.known_features())

    def _discriminate(self, features: Tensor) -> Tensor:
        return self.network.discriminate(features) if self.heads is None else self.heads(features)
