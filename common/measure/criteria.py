"""Criteria of a classifier on images without labels, by which an epoch can be chosen where the target has none.

Each takes (N, C) class probabilities, the target's predictions, and is greater where the network is taken to be better.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_NEIGHBOURS = (
    4096  # predictions that the neighbourhood density compares with each other; more are thinned out evenly
)
TEMPERATURE = 0.05
ROWS = 512  # of similarities in memory at a time


def certainty(probabilities: Tensor) -> Tensor:
    """Minus the mean entropy of the predictions, in nats: 0 where all are certain, -log C where all are even."""
    return -torch.special.entr(probabilities).sum(1).mean()


def mutual_information(probabilities: Tensor) -> Tensor:
    """The entropy of the mean prediction minus the mean entropy of the predictions, in nats, in [0, log C].

    A classifier is certain of each image and does not take all for the same class (Krause et al., NeurIPS 2010).
    """
    return torch.special.entr(probabilities.mean(0)).sum() + certainty(probabilities)


def neighbourhood_density(probabilities: Tensor) -> Tensor:
    """Soft neighbourhood density (Saito et al., ICCV 2021, equations 1 to 3), in nats, in [0, log(N - 1)].

    The mean entropy of how similar a prediction is to each of the others: the softmax of their cosines / 0.05. It is
    high where the predictions form dense clusters.
    """
    step = -(-len(probabilities) // MOST_NEIGHBOURS)
    unit = F.normalize(probabilities[::step], dim=1)
    entropies = []
    for start in range(0, len(unit), ROWS):
        similar = unit[start : start + ROWS] @ unit.T / TEMPERATURE
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -torch.inf
        entropies.append(torch.special.entr(similar.softmax(1)).sum(1))
    return torch.cat(entropies).mean()


CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": certainty,
    "im": mutual_information,
    "snd": neighbourhood_density,
}


@torch.no_grad()
def criteria_of(logits: Tensor) -> dict[str, float]:
    """All of them, by their names in --select, of (N, C) class logits."""
    probabilities = logits.float().softmax(1)
    return {name: float(criterion(probabilities)) for name, criterion in CRITERIA.items()}
