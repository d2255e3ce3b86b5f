"""Packed files: a network in a .safetensors file, its quantized weights as codes of k bits.

The tensors of a file, by name (a layer's name is that of its module):

    levels               (L,)     what a code stands for, ascending
    scales               (S,)     what a layer's or a filter's levels are multiplied by, layers in the network's order
    <layer>.codes        bytes    ceil(numel k / 8), see common.deploy.packing
    <batch norm>         (4, C)   weight, bias, running mean, running variance
    activation_scales    (A,)     learned scales of activations, in the network's order
    any other            floats   as they are, under their names in the network

What evaluation does not read (batch counters, float copies of quantized weights) is not in it. The metadata are the
format, its version, the description of the network as JSON, and a checksum over all of it.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy.description import Description
from common.deploy.packing import code_bits, decode, decoded, encode, levels_of
from common.errors import UserError
from common.quantizers.layers import LearnedScale, QuantConv2d, WeightQuantizer

FORMAT, VERSION = "alignq-packed", 1


def save(network: nn.Module, description: Description, path: Path) -> None:
    """Write a network, whole or not at all. It is put into evaluation mode.

    Raises:
        UserError: weights that are not finite, scales that were never initialised, or safetensors is not installed.
        OSError: the file cannot be written.
    """
    safetensors = _safetensors()
    tensors, text = _tensors(network.eval()), description.to_json()
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "network": text,
        "sha256": _checksum(text, tensors),
    }
    content = safetensors.torch.save(tensors, metadata)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> tuple[nn.Module, Description]:
    """The network of a packed file, in evaluation mode; its weights are decoded once, here.

    Its logits are those of the fake-quantized network, bit for bit.

    Raises:
        UserError: the file is not there, damaged, foreign or newer than this program, or safetensors is not installed.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path}: a safetensors file, but not a packed network; expected one that tools/export.py wrote"
        )
    version = metadata.get("format_version", "")
    if version.isdecimal() and int(version) > VERSION:
        raise UserError(f"{path}: format version {version}, this program reads up to {VERSION}; update this program")
    text = metadata.get("network", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise UserError(f"{path}: damaged, its checksum does not fit its content; copy or export it again")
    try:
        description = Description.from_json(text)
        with torch.device("meta"):  # shapes alone: nothing is allocated before they fit
            _check(description.build(), tensors)
        network = description.build()
        _fill(network, tensors)
    except (ValueError, TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(f"{path}: no network of this program ({error}); export it again") from None
    return network, description


@dataclass(frozen=True)
class _Parts:
    """A network's modules by how a packed file keeps them, and the names of the state that is kept as it is."""

    packed: dict[str, QuantConv2d]
    norms: dict[str, Any]
    scaled: dict[str, LearnedScale]
    plain: tuple[str, ...]


def _parts(network: nn.Module) -> _Parts:
    modules = dict(network.named_modules())
    packed = {name: m for name, m in modules.items() if isinstance(m, QuantConv2d) and _has_codes(m.weight_quantizer)}
    norms = {name: m for name, m in modules.items() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    within = {f"{name}.weight_quantizer" for name in packed}
    scaled = {name: m for name, m in modules.items() if isinstance(m, LearnedScale) and name not in within}
    elsewhere = tuple(f"{name}." for name in (*norms, *scaled, *within))
    plain = (key for key in network.state_dict() if not key.startswith(elsewhere))
    return _Parts(packed, norms, scaled, tuple(key for key in plain if key.removesuffix(".weight") not in packed))


def _has_codes(quantizer: nn.Module) -> bool:
    return isinstance(quantizer, WeightQuantizer) and quantizer.bits <= 8  # aligned 32-bit weights stay float


def _rows(norm: Any) -> tuple[Tensor, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


@torch.no_grad()
def _tensors(network: nn.Module) -> dict[str, Tensor]:
    parts, state = _parts(network), network.state_dict()
    tensors = {name: state[name] for name in parts.plain}
    tensors |= {name: torch.stack(_rows(norm)) for name, norm in parts.norms.items()}
    if missing := [name for name, module in parts.scaled.items() if not module.initialised]:
        raise UserError(
            f"the learned scale of {missing[0]} was never set, so the network is not determined yet; expected a "
            "checkpoint trained with this method at these bits"
        )
    if parts.scaled:
        tensors["activation_scales"] = torch.stack([m.current_scale(m.scale) for m in parts.scaled.values()])
    scales = []
    for name, layer in parts.packed.items():
        quantizer: Any = layer.weight_quantizer
        tensors.setdefault("levels", levels_of(quantizer))
        try:
            tensors[f"{name}.codes"], scale = encode(quantizer, layer.weight, tensors["levels"])
        except ValueError as error:
            raise UserError(f"{name}: {error}; expected a network with finite weights") from None
        scales.append(scale)
    if scales:
        tensors["scales"] = torch.cat(scales)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _check(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """
    Raises:
        ValueError: a tensor is missing, unknown, or of another type or shape than the network (on any device) needs.
    """
    parts, state = _parts(network), network.state_dict()
    expected = {name: (torch.float32, tuple(state[name].shape)) for name in parts.plain}
    expected |= {name: (torch.float32, (4, norm.num_features)) for name, norm in parts.norms.items()}
    if parts.scaled:
        expected["activation_scales"] = (torch.float32, (len(parts.scaled),))
    if parts.packed:
        quantizer: Any = next(iter(parts.packed.values())).weight_quantizer
        levels = levels_of(quantizer)
        expected["levels"] = (torch.float32, (len(levels),))
        expected["scales"] = (torch.float32, (sum(_groups(parts, tensors["scales"])),))
        for name, layer in parts.packed.items():
            size = -(-layer.weight.numel() * code_bits(levels) // 8)
            expected[f"{name}.codes"] = (torch.uint8, (size,))
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}")


def _groups(parts: _Parts, scales: Tensor) -> list[int]:
    """How many scales each packed layer has: one, or one for each filter."""
    per_filter = len(scales) != len(parts.packed)
    return [layer.out_channels if per_filter else 1 for layer in parts.packed.values()]


@torch.no_grad()
def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    parts, state = _parts(network), network.state_dict()
    for name in parts.plain:
        state[name].copy_(tensors[name])
    for name, norm in parts.norms.items():
        for own, row in zip(_rows(norm), tensors[name], strict=True):
            own.copy_(row)
    for module, scale in zip(parts.scaled.values(), tensors.get("activation_scales", ()), strict=True):
        module.load_state_dict({"scale": scale, "reference": scale, "width": torch.tensor(module.bits)})
    if parts.packed:
        groups = tensors["scales"].split(_groups(parts, tensors["scales"]))
        for (name, layer), scales in zip(parts.packed.items(), groups, strict=True):
            layer.weight.copy_(decode(tensors[f"{name}.codes"], scales, tensors["levels"], layer.weight.shape))
            layer.weight_quantizer = decoded(layer.weight_quantizer)


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    safetensors = _safetensors()
    if not path.is_file():
        raise UserError(
            f"{path}: {'a folder' if path.is_dir() else 'there is no such file'}; expected a packed network"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy or export it again") from None


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError('packed files need safetensors: python -m pip install -e ".[deploy]"') from None
    return safetensors
