"""Activations that no BatchNorm normalises: standardised by running statistics, quantized, and put back.

A BatchNorm in small, one mean and one standard deviation for the whole tensor, that keeps what the next layer sees on
its scale: x -> mean + std * Q((x - mean) / std), where Q quantizes a standard normal variable.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.quantizers.base import QuantAct
from common.quantizers.rounding import widen
from common.quantizers.steps import Add, Divide, Multiply, Step

NO_STATISTICS = (
    "an activation quantizer has no statistics yet, and evaluation gives it none: train the network or calibrate it "
    "first, or evaluate a file that was trained with this method at these bits"
)


class StandardisedAct(QuantAct, ABC):
    """Base of quantizers with running statistics; a method says ``quantize`` and ``standard_steps``.

    State: the buffers ``running_mean`` and ``running_var``, 0-dimensional, and ``num_batches_tracked``. As in a
    BatchNorm they are estimated in training and frozen in evaluation; unlike one, training uses them too, the batch's
    share included, so that both modes compute the same. The first batches are averaged, later ones count ``momentum``;
    ``momentum`` None averages all. Statistics are constants to the gradient.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    track_running_stats = True
    averages_first = True  # False: ``momentum`` is the share of every batch, as whoever sets it has reckoned

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.momentum: float | None = 0.1
        self.register_buffer("running_mean", torch.zeros(()))
        self.register_buffer("running_var", torch.ones(()))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._initialised = False  # mirrors ``num_batches_tracked > 0``, so that no forward pass reads the device

    @abstractmethod
    def quantize(self, u: Tensor) -> Tensor:
        """Levels for a standard normal u, with their gradient."""

    @abstractmethod
    def standard_steps(self) -> tuple[Step, ...]:
        """The steps of ``quantize``."""

    @property
    def initialised(self) -> bool:
        return self._initialised

    def reset_running_stats(self) -> None:
        self.set_statistics(torch.zeros(()), torch.ones(()), batches=0)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, var: Tensor, batches: int) -> None:
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.num_batches_tracked.fill_(batches)
        self._initialised = batches > 0

    def see_statistics(self) -> None:
        """After they were copied into its buffers."""
        self._initialised = bool(self.num_batches_tracked > 0)

    @torch.no_grad()
    def _estimate(self, x: Tensor) -> None:
        var, mean = torch.var_mean(widen(x.detach()), correction=0)
        self.num_batches_tracked.add_(1)
        first = 1 / self.num_batches_tracked if self.averages_first else torch.zeros_like(self.running_mean)
        share = first.clamp_min(self.momentum or 0)
        self.running_mean.lerp_(mean.to(self.running_mean), share.to(self.running_mean))
        self.running_var.lerp_(var.to(self.running_var), share.to(self.running_var))
        self._initialised = True

    def _standard(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, which is positive.

        Raises:
            UserError: they have no value.
        """
        if not self._initialised:
            self.see_statistics()
            if not self._initialised:
                raise UserError(NO_STATISTICS)
        return self.running_mean.clone(), self.running_var.clamp_min(torch.finfo(self.running_var.dtype).tiny).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        if self.training or (self.takes_first and not self._initialised):
            self._estimate(x)
        mean, std = self._standard()
        return (self.quantize((widen(x) - mean) / std) * std + mean).to(x.dtype)

    def steps(self) -> tuple[Step, ...]:
        mean, std = self._standard()
        return Add(-mean), Divide(std), *self.standard_steps(), Multiply(std), Add(mean)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.see_statistics()
