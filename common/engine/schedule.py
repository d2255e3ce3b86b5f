"""The learning rate as a function of epoch and progress."""

import math
from collections.abc import Sequence

import torch

from common.quantizers.base import Quantizer


def learning_rate_factor(
    epoch: int,
    progress: float,
    milestones: Sequence[int],
    gamma: float,
    alpha: float = 0.0,
    schedule: str = "steps",
) -> float:
    """The factor on the initial learning rate: of the schedule, over (1 + alpha p)^0.75.

    "steps": gamma^(number of milestones <= epoch). "cosine": (1 + cos(pi p)) / 2 at every step, without milestones
    (Loshchilov and Hutter, ICLR 2017, equation 5, one period). The annealing in ``progress`` p in [0, 1] is DANN's
    (Ganin et al., JMLR 2016, section 5.2.2); alpha = 0: none.
    """
    if schedule == "cosine":
        decay = (1 + math.cos(math.pi * progress)) / 2
    else:
        decay = gamma ** sum(m <= epoch for m in milestones)
    return decay / (1 + alpha * progress) ** 0.75


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, slow: torch.nn.Module | None = None, slow_scale: float = 1.0
) -> list[dict]:
    """Optimizer groups, each with ``lr_scale``: the network, ``slow`` (a pretrained backbone), and the learned scales.

    Learned scales have no weight decay and the learning rate of their method; a group without parameters is left out.
    """
    slow_ids = {id(p) for p in slow.parameters()} if slow is not None else set()
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, Quantizer):
                key = (module.scale_lr, 0.0)
            else:
                key = (slow_scale if id(parameter) in slow_ids else 1.0, weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group to ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
