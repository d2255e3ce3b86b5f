"""DSAN, deep subdomain adaptation (Zhu et al., TNNLS 2020)."""

from dataclasses import dataclass

from torch import Tensor

from common.adaptation.base import Losses, Objective, Pass
from common.adaptation.lmmd import lmmd, lmmd_weight
from common.flags import flag, non_negative


@dataclass(frozen=True)
class DSANOptions:
    param: float = flag(0.3, non_negative, "weight of LMMD")
    lmmd_classes: str = flag("shared", help="classes LMMD averages over", choices=("shared", "all"))


class DSAN(Objective):
    """CE(source classes) + param lambda(p) LMMD of the features."""

    name = "dsan"
    Options = DSANOptions
    epoch_length = "max"
    bottleneck = True

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        if target is None:
            return {}
        features = source.known_features(), target.known_features()
        return {"MMD_loss": lmmd(*features, labels, target.logits.softmax(1), self.options.lmmd_classes)}

    def weight(self, name: str, progress: float) -> float:
        return self.options.param * lmmd_weight(progress) if name == "MMD_loss" else 1.0
