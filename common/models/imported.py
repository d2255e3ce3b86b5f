"""Float CIFAR ResNets of other collections in the names of ours, computing the same function.

Two ways to name them are known: akamaster's (`linear`, shortcuts of option A without weights, or `shortcut.0` and `.1`)
and that of torchvision's ResNets (`fc`, `downsample.0` and `.1`). Both have `conv1`, `bn1` and `layer1` to `layer3`.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.flags import listed, shown

DEPTHS = {20: "resnet20", 56: "resnet56"}  # of the networks here: task names
EPS = 1e-5  # of BatchNorm
BLOCK = re.compile(r"layer([123])\.(\d+)\.(conv1|bn1|conv2|bn2|(?:shortcut|downsample)\.[01])\.(\w+)")
PART = {
    "conv1": "conv0",
    "bn1": "bn0",
    "conv2": "conv1",
    "bn2": "bn1",
    **{f"{name}.{i}": f"skip_{own}" for name in ("shortcut", "downsample") for i, own in enumerate(("conv", "bn"))},
}
ENDS = {"conv1": "conv0", "bn1": "bn", "linear": "logit", "fc": "logit"}


def cifar_resnet(found: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The task of a network and its weights in our names, from those of another collection.

    A shortcut of option A (He et al., CVPR 2016: every second pixel, and zeros for the new channels) has no weights. It
    becomes a 1 x 1 convolution that selects, with a BatchNorm that is the identity at evaluation. Its scale is 0 on the
    new channels, so that in float training gives them a bias and nothing else; on the others training normalises what
    the identity passed, so the function changes with the first step.

    Args:
        found: its tensors by name, without `module.`.
    Raises:
        UserError: it is no such network, of another depth, or has something that has no place in ours.
    """
    stages = sorted({(int(m[1]), int(m[2])) for m in map(BLOCK.fullmatch, found) if m})
    blocks = [number for stage, number in stages if stage == 1]
    if {"conv1.weight", "bn1.weight"} - found.keys() or stages != [(s, b) for s in (1, 2, 3) for b in blocks]:
        raise UserError(
            f"no CIFAR ResNet of another collection (it has {shown(next(iter(found)))}); expected conv1, bn1 and "
            "equally many blocks in layer1, layer2 and layer3"
        )
    depth = 6 * len(blocks) + 2
    if depth not in DEPTHS:
        raise UserError(f"a ResNet-{depth}; expected a depth of {listed([*map(str, DEPTHS)])}")
    renamed = {_renamed(key, len(blocks)): value for key, value in found.items()}
    for index in (len(blocks), 2 * len(blocks)):
        if f"layers.{index}.skip_conv.weight" not in renamed:
            out, into = found[f"layer{index // len(blocks) + 1}.0.conv1.weight"].shape[:2]
            renamed |= {f"layers.{index}.{key}": value for key, value in option_a(into, out).items()}
    return DEPTHS[depth], renamed


def _renamed(key: str, blocks: int) -> str:
    if match := BLOCK.fullmatch(key):
        stage, number, part, what = match.groups()
        return f"layers.{(int(stage) - 1) * blocks + int(number)}.{PART[part]}.{what}"
    module, _, what = key.rpartition(".")
    if module not in ENDS:
        raise UserError(
            f"{shown(key)} has no place in the ResNets here; expected basic blocks, BatchNorm and a classifier"
        )
    return f"{ENDS[module]}.{what}"


def option_a(in_channels: int, channels: int) -> dict[str, Tensor]:
    """The projection, `skip_conv` and `skip_bn`, that is a shortcut of option A at evaluation."""
    before = (channels - in_channels) // 2
    live = F.pad(torch.ones(in_channels), (before, channels - in_channels - before))
    return {
        "skip_conv.weight": F.pad(torch.eye(in_channels), (0, 0, before, channels - in_channels - before))[
            ..., None, None
        ],
        "skip_bn.weight": live,
        "skip_bn.bias": torch.zeros(channels),
        "skip_bn.running_mean": torch.zeros(channels),
        "skip_bn.running_var": torch.full((channels,), 1 - EPS),
        "skip_bn.num_batches_tracked": torch.tensor(0),
    }


def fold_normalization(
    state: Mapping[str, Tensor], theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]
) -> dict[str, Tensor]:
    """Weights for images that are normalised by our mean and std, of a network that was trained with others.

    With p the pixel, (p - m') / s' = a (p - m) / s + b, a = s / s' and b = (m - m') / s': a scales the first
    convolution's weights, and what it makes of b moves the running mean of its BatchNorm. This is exact wherever the
    convolution sees nine pixels; on the outermost row of pixels the padding counts as b in place of 0.

    Args:
        theirs, ours: (mean, std), each of three channels, for pixels in [0, 1].
    """
    (m_theirs, s_theirs), (m, s) = ([torch.tensor(values) for values in pair] for pair in (theirs, ours))
    weight = state["conv0.weight"]
    shift = weight.sum((2, 3)) @ ((m - m_theirs) / s_theirs)
    return {
        **state,
        "conv0.weight": weight * (s / s_theirs)[:, None, None],
        "bn.running_mean": state["bn.running_mean"] - shift,
    }
