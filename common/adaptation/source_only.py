"""Training on the source alone: the baseline of adaptation, and what a single-domain run is."""

from torch import Tensor

from common.adaptation.base import Losses, Objective, Pass


class SourceOnly(Objective):
    """The source's class loss and nothing else."""

    name = "source_only"
    adapts = False

    def losses(self, source: Pass, labels: Tensor, target: Pass | None, progress: float) -> Losses:
        return {}
