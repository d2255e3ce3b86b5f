"""Resizing of images: from the pixels that torch takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from common.deploy.onnx.writer import Bound, NetworkWriter


def resize_bilinear(to: NetworkWriter, call: Bound) -> str:
    """By the sizes; by the scales where torch maps pixels by scales that the sizes are rounded from."""
    aligned, (before, after) = call.given["align_corners"], _sides(call)
    scales = [] if aligned else _scales(call)
    exact = [
        math.isclose(old * scale, new, rel_tol=1e-6) for old, scale, new in zip(before, scales, after, strict=False)
    ]
    if all(exact):
        how = ["", to.integers(f"{call.name}:sizes", after)]
    else:
        factors = torch.tensor(scales)  # float32, as engines multiply
        if (torch.tensor(before) * factors).int().tolist() != after:
            raise call.refuse(f"a resizing by {scales} to {after} has no form in ONNX here")
        how = [to.floats(f"{call.name}:scales", factors)]
    mapped = "align_corners" if aligned else "half_pixel"
    inputs = [_value(call), "", *how]
    return to.add("Resize", inputs, call.name, mode="linear", axes=[2, 3], coordinate_transformation_mode=mapped)


def resize_nearest(to: NetworkWriter, call: Bound) -> str:
    """As a Resize where every pixel is repeated; otherwise engines choose others than torch, which is asked."""
    before, after = _sides(call)
    repeated = [torch.arange(old).repeat_interleave(new // old) for old, new in zip(before, after, strict=True)]
    chosen = [_chosen(*sides) for sides in zip(before, after, _scales(call) or (None, None), strict=True)]
    if all(map(torch.equal, chosen, repeated)):
        inputs, how = [_value(call), "", "", to.integers(f"{call.name}:sizes", after)], "asymmetric"
        floor = {"nearest_mode": "floor", "coordinate_transformation_mode": how}
        return to.add("Resize", inputs, call.name, mode="nearest", axes=[2, 3], **floor)
    rows, columns = (to.integers(f"{call.name}:{axis}", one) for axis, one in enumerate(chosen))
    value = to.add("Gather", [_value(call), rows], f"{call.name}.rows", axis=2)
    return to.add("Gather", [value, columns], call.name, axis=3)


def _chosen(before: int, after: int, scale: float | None) -> torch.Tensor:
    """(after,): which of ``before`` pixels torch takes for each."""
    pixels = torch.arange(before, dtype=torch.float32).view(1, 1, 1, before)
    return torch.ops.aten.upsample_nearest2d(pixels, [1, after], None, scale).flatten().long()


def _value(call: Bound) -> Any:
    return call.given.get("input", call.given.get("self"))


def _sides(call: Bound) -> tuple[list[int], list[int]]:
    """Rows and columns, before and after."""
    (value,) = call.sizes.values()
    before, after = ([int(side or 0) for side in sizes[2:]] for sizes in (value, call.results[0]))
    return before, after


def _scales(call: Bound) -> list[float]:
    """Those by which torch maps pixels; none if by the sizes."""
    given = call.given
    scales = given["scale_factors"] if "scale_factors" in given else [given["scales_h"], given["scales_w"]]
    return [] if scales is None or None in scales else list(scales)
