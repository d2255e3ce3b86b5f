"""How far a network's running statistics are from those of its source's images, taken as a new domain's images are.

Training sees images enlarged, cropped and mirrored, and a running average sees its last batches; a new domain's images
come as they are. Their statistics in the place of the running ones would move a network whose domain did not change:
on photographs that costs accuracy, also with all of the source's images (docs/realignment.md). So a run measures at
its end what its statistics are off on images of its own source, and re-alignment (common.adaptation.realign) gives a
layer the statistics that training would have made of the new images: their mean plus the offset of means, and their
variance times the quotient of variances.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation.moments import Moments, Norm, eps_of, hooked, of_images, run, running
from common.errors import UserError
from common.measure.statistics import modes_kept, norms
from common.torch_files import is_plain

IMAGES = 1024  # of the source, to measure by
AT_ONCE = 32
KEY = "offsets"  # in a checkpoint

Offsets = dict[str, Tensor]  # (2, C) float32, difference of means and quotient of variances, by the name of the layer


@torch.no_grad()
def measure(network: nn.Module, images: Tensor) -> Offsets:
    """Of the layers that images reach; the network, its modes and statistics stay as they are.

    Args:
        images: (n, 3, H, W) float32, normalised, of the source, as an evaluation takes them.
    """
    layers = norms(network)
    sums: dict[Norm, Tensor] = {}
    rows: dict[Norm, int] = {}

    def see(norm: Norm, x: Tensor) -> None:
        mean, var = of_images(x, norm, len(chunk))
        sums[norm] = sums.get(norm, 0) + torch.stack((mean.sum(0), (var + mean.square()).sum(0))).cpu()
        rows[norm] = rows.get(norm, 0) + len(mean)

    with modes_kept(network), hooked(layers.values(), see):
        network.eval()
        for chunk in images.split(AT_ONCE):
            run(network, chunk)
    found: Offsets = {}
    for name, norm in layers.items():
        if norm in sums:
            (mean, square), (own_mean, own_var), eps = sums[norm] / rows[norm], running(norm).double(), eps_of(norm)
            var = (square - mean.square()).clamp_min(0)
            found[name] = torch.stack((own_mean - mean, (own_var + eps) / (var + eps))).float()
    return found


def attach(network: nn.Module, offsets: Offsets) -> None:
    """Let the network's layers have them; they stay with it, also in a copy."""
    layers: dict[str, Any] = norms(network)
    for name, values in offsets.items():
        layers[name].offsets = values


def of(network: nn.Module) -> Offsets:
    """Those that its layers have."""
    layers: dict[str, Any] = norms(network)
    return {name: norm.offsets for name, norm in layers.items() if hasattr(norm, "offsets")}


def attach_from(content: Mapping[str, Any], network: nn.Module, path: Path) -> None:
    """Let the network have those of a checkpoint, of whose content nothing is known; an older one has none.

    Raises:
        UserError: they are not of this network, or no such numbers.
    """
    layers, found = norms(network), content.get(KEY, {})
    fitting = isinstance(found, dict) and found.keys() <= layers.keys()
    if not fitting or not all(is_offset(values, layers[name]) for name, values in found.items()):
        raise UserError(f"{path}: the offsets of its statistics are not those of this network")
    attach(network, found)


def is_offset(values: Any, norm: Norm) -> bool:
    """Whether these could be a layer's: (2, C) float32, finite, quotients above 0."""
    if not (is_plain(values) and values.dtype == torch.float32 and values.shape == (2, norm.running_mean.numel())):
        return False
    return bool(values.isfinite().all()) and bool((values[1] > 0).all())


def as_in_training(moments: Moments, norm: Norm) -> Moments:
    """What training would have made of images with these moments, where the layer has offsets."""
    if not hasattr(norm, "offsets"):
        return moments
    (difference, quotient), eps = norm.offsets.double(), eps_of(norm)
    var = ((moments.var + eps) * quotient - eps).clamp_min(0)
    return Moments(moments.mean + difference, var, moments.mean_chance, moments.var_chance * quotient.square())
