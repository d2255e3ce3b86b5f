"""How far each alignment quantizer moves the relations between samples, measured on a trained network."""

from typing import Any

from torch import Tensor, nn

from common.admm.correlation import relation_shift
from common.measure.observe import observe
from common.quantizers.alignq import AlignAct


def measure(model: nn.Module, images: Tensor) -> dict[str, Any] | None:
    """Mean |D_ij| of every activation quantizer of "ours", in evaluation mode; None: the network has none.

    D is ``relation_shift``, once with the aligned value and once with the rounded one, so that the difference is what
    the rounding adds.

    Args:
        images: (B, C, H, W), B >= 2.
    Returns:
        {"images": B, "layers": [{"layer": name, "aligned": mean |D|, "quantized": mean |D|}, ...]} in order of use.
    """
    sites = {name: module for name, module in model.named_modules() if isinstance(module, AlignAct)}
    if not sites or len(images) < 2:
        return None
    layers: list[dict[str, Any]] = []

    def look(name: str, site: Any, x: Tensor) -> None:
        grids = {"aligned": None, "quantized": site.grid}
        shifts = {key: relation_shift(x, site.act_range, grid) for key, grid in grids.items()}
        layers.append({"layer": name, **{key: float(shift.abs().mean()) for key, shift in shifts.items()}})

    observe(model, sites, look, images)
    return {"images": len(images), "layers": layers}
