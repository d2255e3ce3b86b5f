"""MCC, minimum class confusion (Jin et al., ECCV 2020): no discriminator, no distance between domains."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.adaptation.base import Losses, Objective, Pass, at_least_float32
from common.adaptation.cdan import certainty
from common.flags import flag, non_negative, positive


@dataclass(frozen=True)
class MCCOptions:
    mcc_weight: float = flag(1.0, non_negative, "weight of the class confusion")
    mcc_temperature: float = flag(2.5, positive, "temperature of the target's predictions in it")


class MCC(Objective):
    """CE(source classes) + mcc_weight times the class confusion of the target's predictions."""

    name = "mcc"
    Options = MCCOptions
    epoch_length = "max"

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        return {} if target is None else {"MCC_loss": class_confusion(target.logits, self.options.mcc_temperature)}

    def weight(self, name: str, progress: float) -> float:
        return self.options.mcc_weight if name == "MCC_loss" else 1.0


def class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """How much a batch of predictions confuses classes with each other (section 3 of the paper).

    With Y the softmax of logits / temperature, W the certainties 1 + exp(-entropy) of its rows normalised to mean 1,
    and C = Y^T W Y with rows divided by their sums: the sum of C's entries off the diagonal, over the classes. W is a
    constant to the gradient, as in the authors' code. Half precision is computed in float32, inside autocast too.

    Args:
        logits: (B, C).
    Returns:
        0-dimensional, in [0, 1): 0 where every prediction is certain. A class of probability 0 in the whole batch
        counts as not confused.
    """
    with torch.autocast(logits.device.type, enabled=False):
        y = (at_least_float32(logits) / temperature).softmax(1)
        confusion = y.T @ (y * certainty(y.detach()).unsqueeze(1))
        confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)
        return (confusion.sum() - confusion.trace()) / logits.shape[1]
