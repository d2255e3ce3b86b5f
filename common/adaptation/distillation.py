"""Distillation: a float network's logits as a second target beside the labels, on images without labels too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.quantizers.rounding import widen


@dataclass(frozen=True)
class Distillation:
    """What a teacher asks of every step: its loss counts ``weight`` times beside the objective's own.

    Attributes:
        teacher: images (B, 3, H, W) to logits (B, C); no gradient goes into it.
    """

    teacher: Callable[[Tensor], Tensor]
    weight: float
    temperature: float

    def loss(self, images: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """``distillation_loss`` over all images of a step, those of both domains alike."""
        with torch.no_grad():
            taught = self.teacher(torch.cat(list(images)))
        return distillation_loss(torch.cat(list(logits)), taught, self.temperature)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q), the mean over the samples, with p and q the softmax of teacher / T and logits / T.

    Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2. The gradient T (q - p) / B stays of one size when T
    changes; for a large T it tends to that of half the squared distance of the centred logits, over C B.

    Args:
        logits, teacher: (B, C). temperature: T > 0.
    Returns:
        0-dimensional, at least 0; 0 where the logits of every sample differ from the teacher's by a constant. Half
        precision is computed in float32.
    """
    student, taught = (widen(one) / temperature for one in (logits, teacher))
    divergence = F.kl_div(student.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)
    return temperature**2 * divergence
