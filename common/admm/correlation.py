"""Relations between the samples of a batch, and how far the alignment of the features moves them."""

from typing import Any, Literal

import torch
from torch import Tensor

from common.quantizers.alignq import aligned_position, density
from common.quantizers.rounding import FLOAT_BITS, Grid, handed_out

On = Literal["aligned", "quantized"]

UNROUNDED = Grid(FLOAT_BITS, scale=1.0, offset=0.0)
CPU_CHUNK = 1 << 18  # elements of a temporary, per thread: 1 MiB of float32 stays in the caches
ACCELERATOR_CHUNK = 1 << 23  # 32 MiB: few kernel launches, and still small beside the activations


def relation_matrix(features: Tensor, eps: float = 1e-5) -> Tensor:
    """Relations between the samples of a batch (AlignQ, CVPR 2022, CRP): C = Xs Xs^T / F.

    Each feature is standardised over the batch, which gives Xs; entry (i, j) is the mean product of samples i and j.
    The diagonal is not 1: C measures similarity, it does not hold correlation coefficients.

    Args:
        features: (B, ...) float tensor, B >= 2; trailing dimensions are flattened to F. Half precision is computed
            in float32, inside autocast too.
        eps: added to the unbiased standard deviation of each feature.
    Returns:
        (B, B) symmetric matrix; permuting the batch permutes rows and columns alike.
    Raises:
        ValueError: fewer than two samples, no features, or features that are not floats.
    """
    _check(features)
    with torch.autocast(features.device.type, enabled=False):
        columns = features.reshape(len(features), -1).to(_wide(features))
        std, mean = torch.std_mean(columns, dim=0)
        standardised = (columns - mean) / (std + eps)
        return standardised @ standardised.T / columns.shape[1]


def relation_shift(x: Tensor, act_range: float = 2.0, grid: Grid | None = None, eps: float = 1e-5) -> Tensor:
    """D = C(Y) - C(X): what the alignment does to the relations between samples (AlignQ, CVPR 2022, CRP).

    C is `relation_matrix` and Y = act_range (2 Phi(X) - 1) elementwise, Phi the standard normal CDF, rounded on
    ``grid`` where one is given; the gradient is straight-through over the rounding. Differentiable once.

    The features are processed in blocks of columns, forward and backward, so that no standardised copy of X or Y ever
    exists: kept for the backward pass are x itself, which the quantizer keeps anyway, and four numbers per feature.
    Dense memory formats are read in place, as C does not depend on the order of the features. Half precision is
    computed in float32, inside autocast too.

    Args:
        x: (B, ...) float tensor, B >= 2, the BatchNorm output.
        act_range: r, half-width of the aligned range.
        eps: positive, added to the unbiased standard deviation of each feature.
    Returns:
        (B, B) symmetric matrix, float32 or float64; permuting the batch permutes rows and columns alike.
    Raises:
        ValueError: fewer than two samples, no features, or features that are not floats.
    """
    _check(x)
    return _AlignWithShift.apply(x, act_range, grid or UNROUNDED, grid is not None, eps, False)[1]


def align_with_shift(
    x: Tensor, act_range: float, grid: Grid | None, on: On = "aligned", eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """DAQ of activations and the shift of their relations in one pass over memory.

    Args:
        x, act_range, eps: as in `relation_shift`.
        grid: the levels, ``None`` for no rounding.
        on: D compares x with its ``aligned`` value or with its ``quantized`` one.
    Returns:
        ``align_activation(x, act_range, grid)`` to the bit, and D of `relation_shift`.
    Raises:
        ValueError: as `relation_shift`.
    """
    _check(x)
    rounded = on == "quantized" and grid is not None
    return _AlignWithShift.apply(x, act_range, grid or UNROUNDED, rounded, eps, True)


class _AlignWithShift(torch.autograd.Function):
    """The levels (where wanted) and D by blocks of columns; gradients in closed form.

    In place of Y stands its position on the grid, Y scale + offset: standardising removes the offset, and the scale
    too once eps is multiplied by it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: float, grid: Grid, rounded: bool, eps: float, levels_wanted: bool
    ) -> tuple[Tensor | None, Tensor]:
        order = _memory_order(x)
        columns = _columns(x, order)
        levels = torch.empty(columns.shape, dtype=x.dtype, device=x.device) if levels_wanted else None
        width = _block_width(x)
        blocks = columns.split(width, 1)
        targets = [None] * len(blocks) if levels is None else levels.split(width, 1)
        product = torch.zeros(len(x), len(x), dtype=_wide(x), device=x.device)
        statistics: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            for block, target in zip(blocks, targets, strict=True):
                wide = block.to(product.dtype)
                y = aligned_position(wide, r, grid)
                codes = y if grid is UNROUNDED else torch.round(y)
                if target is not None:
                    grid.values(codes, out=target)
                if rounded:
                    y = codes
                xs, x_mean, x_std = _centre(wide)
                yc, y_mean, y_std = _centre(y)
                xs.mul_(1 / (x_std + eps))
                y_scale = 1 / (y_std + eps * grid.scale)
                # Ys Ys^T - Xs Xs^T is the symmetric part of (Xs + Ys)(Ys - Xs)^T: one product, and no cancellation
                difference = torch.addcmul(xs, yc, y_scale, value=-1)
                product.addmm_(xs.addcmul_(yc, y_scale), difference.T, alpha=-1)
                statistics += x_mean, x_std, y_mean, y_std
        ctx.save_for_backward(x, *statistics)
        ctx.arguments = r, grid, rounded, eps, width
        ctx.set_materialize_grads(False)
        shift = handed_out((product + product.T).div_(2 * columns.shape[1]))
        return None if levels is None else handed_out(_uncolumns(levels, x.shape, order)), shift

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, levels_grad: Tensor | None, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *statistics = ctx.saved_tensors
        r, grid, rounded, eps, width = ctx.arguments
        if grad is None:
            grad = statistics[0].new_zeros(len(x), len(x))
        order = _memory_order(x)
        columns = _columns(x, order)
        result = torch.empty(columns.shape, dtype=x.dtype, device=x.device)
        blocks, targets = columns.split(width, 1), result.split(width, 1)
        through = [None] * len(blocks) if levels_grad is None else _columns(levels_grad, order).split(width, 1)
        by_block = [statistics[first : first + 4] for first in range(0, len(statistics), 4)]
        with torch.autocast(x.device.type, enabled=False):
            # <G, d(Xs Xs^T)> = <(G + G^T) Xs, d Xs>. Centring G over rows and columns centres every gradient below.
            upstream = (grad + grad.T) / columns.shape[1]
            upstream = upstream - upstream.mean(0)
            upstream = upstream - upstream.mean(1, keepdim=True)
            at_x, at_y = -upstream, upstream * grid.scale
            for block, target, passed, (x_mean, x_std, y_mean, y_std) in zip(
                blocks, targets, through, by_block, strict=True
            ):
                wide = block.to(grad.dtype)
                y = aligned_position(wide, r, grid)
                if rounded:
                    y.round_()
                gy = _standardise_backward(y.sub_(y_mean), y_std, eps * grid.scale, at_y, passed)
                gx = _standardise_backward(wide - x_mean, x_std, eps, at_x)
                torch.addcmul(gx, gy, density(wide, r), out=target)
        return _uncolumns(result, x.shape, order), None, None, None, None, None


def _centre(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values less their column means, these means, and the unbiased deviations."""
    mean = values.mean(0)
    centred = values - mean
    return centred, mean, (centred * centred).sum(0).div_(len(values) - 1).sqrt_()


def _standardise_backward(
    centred: Tensor, std: Tensor, eps: float, upstream: Tensor, passed: Tensor | None = None
) -> Tensor:
    """Gradient of <upstream / 2, Xs Xs^T> at the features, through Xs = centred / (std + eps), plus ``passed``."""
    h = upstream @ centred
    scale = 1 / (std + eps)
    gain = scale * scale
    pull = (h * centred).sum(0).div_(std.clamp_min(1e-6 * eps)).mul_(gain).mul_(scale.div_(1 - len(centred)))
    grad = h.mul_(gain) if passed is None else torch.addcmul(passed, h, gain)
    return grad.addcmul_(centred, pull)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(features: Tensor) -> None:
    if features.dim() == 0 or len(features) < 2 or features.numel() == 0 or not features.is_floating_point():
        got = f"{tuple(features.shape)} {features.dtype}"
        raise ValueError(f"relations are between two samples or more, of float features; got {got}")


def _block_width(x: Tensor) -> int:
    if torch.compiler.is_compiling():  # the compiler makes its own blocks
        return x[0].numel()
    elements = CPU_CHUNK * torch.get_num_threads() if x.device.type == "cpu" else ACCELERATOR_CHUNK
    return max(1, elements // len(x))


def _memory_order(x: Tensor) -> list[int]:
    """The dimensions, samples first and features as they lie in memory."""
    return [0, *sorted(range(1, x.dim()), key=x.stride, reverse=True)]


def _columns(x: Tensor, order: list[int]) -> Tensor:
    """(B, F), without a copy where ``order`` is the memory order of a dense tensor."""
    return x.permute(order).reshape(len(x), -1)


def _uncolumns(columns: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """Undo `_columns`, memory order kept."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return columns.view([shape[dim] for dim in order]).permute(inverse)
