"""The tensors of a packed file, by name (a layer's name is that of its module):

    levels               (L,)     what a code stands for, ascending
    scales               (S,)     what a layer's or a filter's levels are multiplied by, layers in the network's order
    <layer>.codes        bytes    ceil(numel k / 8), see common.deploy.packed.packing
    <batch norm>         (4, C)   weight, bias, running mean, running variance
    activation_scales    (A,)     learned scales of activations, in the network's order
    activation_moments   (M, 2)   running means and variances of activations, in the network's order
    <layer>.offsets      (2, C)   of its running statistics, as common.adaptation.offsets has them; where they are known
    any other            as it is, under its name in the network

What evaluation does not read (batch counters, float copies of quantized weights) is not in it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.adaptation import offsets
from common.deploy.graph import refuse_unset
from common.deploy.packed.packing import DecodedWeight, code_bits, decode, encode
from common.errors import UserError
from common.measure.statistics import norms
from common.quantizers.base import WeightQuantizer
from common.quantizers.layers import QuantLayer
from common.quantizers.learned_scale import LearnedScale
from common.quantizers.standardised import StandardisedAct

OFFSETS = ".offsets"
TABLES = ("levels", "scales", "activation_scales", "activation_moments")


@dataclass(frozen=True)
class _Parts:
    """A network's modules by how a packed file keeps them, and the names of the state that is kept as it is."""

    packed: dict[str, QuantLayer]
    norms: dict[str, Any]
    scaled: dict[str, LearnedScale]
    standardised: dict[str, StandardisedAct]
    plain: tuple[str, ...]


def _parts(network: nn.Module) -> _Parts:
    modules = dict(network.named_modules())
    packed = {name: m for name, m in modules.items() if isinstance(m, QuantLayer) and _is_packed(m.weight_quantizer)}
    norms = {name: m for name, m in modules.items() if isinstance(m, _BatchNorm) and m.affine and m.track_running_stats}
    within = {f"{name}.weight_quantizer" for name in packed}
    scaled = {name: m for name, m in modules.items() if isinstance(m, LearnedScale) and name not in within}
    standardised = {name: m for name, m in modules.items() if isinstance(m, StandardisedAct)}
    elsewhere = tuple(f"{name}." for name in (*norms, *scaled, *standardised, *within))
    first = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}  # of shared ones
    plain = (key for key in network.state_dict() if key in first and not key.startswith(elsewhere))
    plain = (key for key in plain if key.removesuffix(".weight") not in packed)
    return _Parts(packed, norms, scaled, standardised, tuple(plain))


def _is_packed(quantizer: nn.Module) -> bool:
    return isinstance(quantizer, WeightQuantizer) and quantizer.has_codes


def _rows(norm: Any) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


@torch.no_grad()
def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """What a file holds of a network, on the CPU.

    Raises:
        UserError: weights that are not finite, scales that were never initialised, or a name that is taken.
    """
    parts, state = _parts(network), network.state_dict()
    if taken := [name for name in parts.plain if name in TABLES]:
        raise UserError(f"the network has a parameter or buffer {taken[0]}, a name that packed files use; rename it")
    tensors = {name: state[name] for name in parts.plain}
    tensors |= {name: torch.stack(_rows(norm)) for name, norm in parts.norms.items()}
    if parts.scaled:
        refuse_unset(parts.scaled.items())
        tensors["activation_scales"] = torch.stack([one.settled() for one in parts.scaled.values()])
    if parts.standardised:
        refuse_unset(parts.standardised.items())
        moments = [torch.stack((one.running_mean, one.running_var)) for one in parts.standardised.values()]
        tensors["activation_moments"] = torch.stack(moments)
    tensors |= {f"{name}{OFFSETS}": values for name, values in offsets.of(network).items()}
    scales = []
    for name, layer in parts.packed.items():
        quantizer: Any = layer.weight_quantizer
        tensors.setdefault("levels", quantizer.levels())
        try:
            tensors[f"{name}.codes"], scale = encode(quantizer, layer.weight)
        except ValueError as error:
            raise UserError(f"{name}: {error}; expected a network with finite weights") from None
        scales.append(scale)
    if scales:
        tensors["scales"] = torch.cat(scales)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def check(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a tensor is missing, unknown, or of another type or shape than the network (on any device) needs.
    """
    parts, state = _parts(network), network.state_dict()
    expected = {name: (state[name].dtype, tuple(state[name].shape)) for name in parts.plain}
    expected |= {name: (torch.float32, (4, norm.num_features)) for name, norm in parts.norms.items()}
    if parts.scaled:
        expected["activation_scales"] = (torch.float32, (len(parts.scaled),))
    if parts.standardised:
        expected["activation_moments"] = (torch.float32, (len(parts.standardised), 2))
    if parts.packed:
        quantizer: Any = next(iter(parts.packed.values())).weight_quantizer
        levels = quantizer.levels()
        expected["levels"] = (torch.float32, (len(levels),))
        expected["scales"] = (torch.float32, (sum(_groups(parts, tensors["scales"])),))
        for name, layer in parts.packed.items():
            size = -(-layer.weight.numel() * code_bits(levels) // 8)
            expected[f"{name}.codes"] = (torch.uint8, (size,))
    known = norms(network)
    found = {
        name: (tensor.dtype, tuple(tensor.shape))
        for name, tensor in tensors.items()
        if not (name.removesuffix(OFFSETS) in known and offsets.is_offset(tensor, known[name.removesuffix(OFFSETS)]))
    }
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}")


def _groups(parts: _Parts, scales: Tensor) -> list[int]:
    """How many scales each packed layer has: one, or one for each filter."""
    per_filter = len(scales) != len(parts.packed)
    return [len(layer.weight) if per_filter else 1 for layer in parts.packed.values()]


@torch.no_grad()
def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The reverse, for tensors that ``check`` has let pass; its layers keep the decoded weights alone."""
    parts, state = _parts(network), network.state_dict()
    for name in parts.plain:
        state[name].copy_(tensors[name])
    for name, norm in parts.norms.items():
        for own, row in zip(_rows(norm), tensors[name], strict=True):
            own.copy_(row)
    for module, scale in zip(parts.scaled.values(), tensors.get("activation_scales", ()), strict=True):
        module.load_state_dict({"scale": scale, "reference": scale, "width": torch.tensor(module.bits)})
    for one, moments in zip(parts.standardised.values(), tensors.get("activation_moments", ()), strict=True):
        one.set_statistics(moments[0], moments[1], batches=1)
    layers = norms(network)
    found = {name: tensors[f"{name}{OFFSETS}"] for name in layers if f"{name}{OFFSETS}" in tensors}
    offsets.attach(network, found)
    if parts.packed:
        groups = tensors["scales"].split(_groups(parts, tensors["scales"]))
        for (name, layer), scales in zip(parts.packed.items(), groups, strict=True):
            decoded = decode(tensors[f"{name}.codes"], scales, tensors["levels"], layer.weight.shape)
            layer.weight = nn.Parameter(decoded.to(layer.weight))  # one of its own: tied weights may differ in scale
            origin: Any = layer.weight_quantizer
            layer.weight_quantizer = DecodedWeight(origin, scales.clone())
