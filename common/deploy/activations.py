"""Quantized activations as codes: the real number that a quantizer rounds, and the level that a code stands for."""

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.quantizers.alignq import AlignAct, aligned_position
from common.quantizers.apot import APoTAct
from common.quantizers.dorefa import DoReFaAct
from common.quantizers.layers import LearnedScale, QuantAct
from common.quantizers.llsq import LLSQAct
from common.quantizers.lsq import LSQAct
from common.quantizers.rounding import Grid, unit_grid
from common.quantizers.uniform import UniformAct


def has_codes(layer: nn.Module) -> bool:
    """Whether it quantizes activations; the 32-bit form of ``--stage align`` does not."""
    return isinstance(layer, QuantAct) and not (isinstance(layer, AlignAct) and layer.grid is None)


def settled_scale(quantizer: LearnedScale, name: str) -> Tensor:
    """The 0-dimensional learned scale of a trained quantizer.

    Raises:
        UserError: it was never set.
    """
    if not quantizer.initialised:
        raise UserError(
            f"the learned scale of {name} was never set, so the network is not determined yet; expected a "
            "checkpoint trained with this method at these bits"
        )
    return quantizer.current_scale(quantizer.scale).detach()


def clipped_grid(act: UniformAct | DoReFaAct) -> tuple[float, Grid]:
    """The end of the range [0, end] and the grid on it."""
    end = act.act_range if isinstance(act, UniformAct) else 1.0
    return end, unit_grid(act.bits, end)


def position(act: QuantAct, x: Tensor) -> Tensor:
    """The real-valued code of x, in x's shape and type, clipped as the method clips: rounded, it is the code.

    It ascends with x. For apot, whose levels are uneven, it is linear between the thresholds.

    Raises:
        UserError: a quantizer of a method that is not listed here.
    """
    match act:
        case AlignAct(grid=Grid() as grid):
            return aligned_position(x, act.act_range, grid)
        case UniformAct() | DoReFaAct():
            end, grid = clipped_grid(act)
            return x.clamp(0, end) * grid.scale
        case LSQAct() | LLSQAct():
            return (x / act.current_scale(x)).clamp(act.low, act.high)
        case APoTAct():
            inner, levels = act.thresholds.to(x.dtype), act.levels.to(x.dtype)
            knots = torch.cat((2 * levels[:1] - inner[:1], inner, 2 * levels[-1:] - inner[-1:]))
            v = (x / act.current_scale(x)).clamp(0, 1)
            below = torch.searchsorted(knots, v).sub_(1).clamp_(0, len(inner))
            return below + (v - knots[below]) / (knots[below + 1] - knots[below]) - 0.5
    raise UserError(f"activations of {type(act).__name__} are not listed in common/deploy/activations.py")


def codes_of(act: QuantAct, values: Tensor) -> Tensor:
    """The codes, int32, of levels that the quantizer gave."""
    codes = act.grid.codes(values) if isinstance(act, AlignAct) and act.grid is not None else position(act, values)
    return codes.round().to(torch.int32)


def levels_of(act: QuantAct, codes: Tensor) -> Tensor:
    """The levels of codes, float64: what the float32 levels of the network are the rounded values of."""
    match act:
        case AlignAct(grid=Grid() as grid):
            return grid.values(codes.double())
        case UniformAct() | DoReFaAct():
            return codes.double() / clipped_grid(act)[1].scale
        case LSQAct() | LLSQAct():
            return codes * act.scale.double()
        case APoTAct():
            return act.levels[codes].double() * act.scale.double()
    raise UserError(f"activations of {type(act).__name__} are not listed in common/deploy/activations.py")
