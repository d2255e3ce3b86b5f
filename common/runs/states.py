"""The states in a checkpoint that a resumed run takes over, each only where it is that of this run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.admm.crp import CRP
from common.errors import UserError
from common.reading import reason
from common.torch_files import is_plain


def continue_from(module: nn.Module, state: Any, what: str) -> None:
    """Load a state that was saved with exactly the module's own names, shapes and types.

    Raises:
        UserError: it was not.
    """
    if not fits(module, state):
        raise UserError(f"--resume: the state of {what} is not that of this run; --source_file starts from its weights")
    module.load_state_dict(state)


def continue_crp(crp: CRP, state: Any) -> None:
    """Load the relations of a run with the same sites; those of another batch size start anew.

    Raises:
        UserError: they are of other sites or none, or are no square matrices.
    """
    known = isinstance(state, dict) and state.keys() == crp.state_dict().keys()
    if not known or not all(
        is_plain(found) and found.ndim == 2 and found.shape[0] == found.shape[1] for found in state.values()
    ):
        raise UserError("--resume: relation preservation in it is not that of this run; --source_file starts afresh")
    crp.load_state_dict(state)


def fits(module: nn.Module, state: Any) -> bool:
    """Whether a state has exactly the module's own names, shapes and types."""
    own = module.state_dict()
    return isinstance(state, dict) and state.keys() == own.keys() and all(_alike(state[k], own[k]) for k in own)


def _alike(found: object, own: Tensor) -> bool:
    return is_plain(found) and found.shape == own.shape and found.dtype == own.dtype  # type: ignore[attr-defined]


def continue_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load an optimizer's state whose groups and momenta are those of its parameters.

    Raises:
        UserError: they are not.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = optimizer.state_dict()["param_groups"]
    try:
        momenta = {index: entry.get("momentum_buffer") for index, entry in state["state"].items()}
        same = momenta.keys() <= set(range(len(parameters)))
        same = same and all(m is None or _alike(m, parameters[index]) for index, m in momenta.items())
        same = same and all(map(_same_group, own, state["param_groups"])) and len(own) == len(state["param_groups"])
    except Exception as error:  # a forged state fails in whatever way its content says
        raise UserError(f"--resume: the optimizer's state cannot be read ({reason(error)})") from None
    if not same:
        raise UserError("--resume: the optimizer's state is not that of this network's parameters")
    optimizer.load_state_dict(state)


def _same_group(own: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a group has the parameters of ``own``, and settings of the same kinds."""

    def fits(setting: Any, other: Any) -> bool:
        if type(setting) in (int, float):
            return type(other) in (int, float) and math.isfinite(other) and other >= 0
        return other == setting if type(setting) is list else other is None or type(other) is bool

    return own.keys() == found.keys() and all(fits(own[name], found[name]) for name in own)
