"""Files of weights: one complete file exists at any time, reading executes nothing, matching is by name and shape."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import torch_files
from common.config.groups import Quantization
from common.errors import UserError, one_line
from common.flags import Flag, flags_of, shown
from common.quantizers.base import Quantizer
from common.quantizers.layers import initialise_weights
from common.torch_files import is_plain
from common.writing import write_whole

STATE_KEYS = ("state_dict_t", "state_dict")
RESUME_KEYS = ("optimizer_t", "scheduler_t", "random", "crp", "crp_others", "amp")  # what only a resumed run reads
METHOD = flags_of(Quantization)["method"]
LEFT_OUT = ("admm", ".opt.", "feature.fc.", "feature_layers.fc.")  # published entries that no network of ours has


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` to a temporary file beside ``path``, flush it to disk, and rename it.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` then still holds what it held.
    """
    buffer = io.BytesIO()  # so that a full disk is an OSError and not an error of the archive's writer
    torch.save(dict(state), buffer)
    write_whole(path, buffer.getbuffer())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_weights_alone(path: Path) -> None:
    """Rewrite a checkpoint of this program without what only a resumed run reads."""
    content = read(path)
    if any(key in content for key in RESUME_KEYS):
        save({key: value for key, value in content.items() if key not in RESUME_KEYS}, path)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is executed.

    Raises:
        UserError: as ``torch_files.read``, or it holds no dictionary.
    """
    content = torch_files.read(path, "a checkpoint file such as model_best.pt")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def config_of(content: Mapping[str, Any], known: Mapping[str, Flag], where: str) -> dict[str, Any]:
    """The flags of the run that a checkpoint records, as far as they are ``known``, each read as if typed.

    Raises:
        UserError: a value that the flag would not take.
    """
    recorded = content.get("config")
    found = recorded if isinstance(recorded, dict) else {}
    return {name: known[name].value(value, where) for name, value in found.items() if name in known}


def weights_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: under state_dict_t, state_dict, or the file itself; ``module.`` is stripped.

    Raises:
        UserError: there are none, or one is not an ordinary tensor in memory.
    """
    state = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)), content)
    tensors = {
        key.removeprefix("module."): value
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"{path}: holds no weights; expected them under {', '.join(STATE_KEYS)} or at the top")
    for key, value in tensors.items():
        if not is_plain(value):
            raise UserError(f"{path}: {shown(key)} is not an ordinary tensor; expected plain weights")
    return tensors


@dataclass(frozen=True)
class LoadReport:
    """What a file gave a model: names loaded, names the model has beyond it, names of the file left out."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]

    def lines(self, path: Path) -> list[str]:
        def some(names: tuple[str, ...]) -> str:
            return one_line(", ".join(names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

        lines = [f"loaded {len(self.loaded)} tensors from {path}"]
        if self.missing:
            lines.append(f"not in the file, left as initialised: {some(self.missing)}")
        if self.left_out:
            lines.append(f"in the file, not used: {some(self.left_out)}")
        return lines


def _learned_state(model: nn.Module) -> set[str]:
    """Names of the state that belongs to quantizers: meaningful for the same method alone."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, Quantizer)
        for name in module.state_dict()
    }


def load_weights(model: nn.Module, path: Path, method: str | None = None) -> tuple[LoadReport, dict]:
    """Fill ``model`` from a file and initialise the learned scales that the file does not bring.

    Args:
        method: of the model; learned scales are taken over only from a file that says it has the same. Those that
            depend on the bit-width start anew at another one.
    Returns:
        What was loaded, and the file's whole content.
    Raises:
        UserError: the file cannot be read, a shape differs, or fewer than half of the model's tensors are in it.
    """
    content = read(path)
    found = weights_of(content, path)
    own = model.state_dict()
    if _is_filter(found, "feature.4.weight") and not _is_filter(own, "feature.4.weight"):
        found = {_remap_vgg2(key): value for key, value in found.items()}  # from the older float layout of the VGG-2
    found = {_remap_attention(key, own): value for key, value in found.items()}
    recorded = config_of(content, {"method": METHOD}, str(path)).get("method")
    same_method = method is not None and method == recorded
    learned = set() if same_method else _learned_state(model)
    usable = {key: value for key, value in found.items() if key in own and key not in learned}
    for key, value in usable.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(value.shape)}, this network needs {tuple(own[key].shape)}; "
                "is it a file of another model, image size or number of classes?"
            )
    needed = [key for key in own if key not in learned]
    if 2 * len(usable) < len(needed):
        raise UserError(
            f"{path}: only {len(usable)} of the network's {len(needed)} tensors are in it (it has {next(iter(found))}, "
            f"the network {needed[0]}); expected a file of this model"
        )
    model.load_state_dict(usable, strict=False)
    initialise_weights(model)
    return (
        LoadReport(
            tuple(usable),
            tuple(key for key in needed if key not in usable),
            tuple(key for key in found if key not in own and not any(part in key for part in LEFT_OUT)),
        ),
        content,
    )


def _is_filter(state: Mapping[str, Tensor], key: str) -> bool:
    return key in state and state[key].ndim == 4


def _remap_attention(key: str, own: Mapping[str, Tensor]) -> str:
    """The name that a float network's attention has once its projections are layers (conversion.attention)."""
    head, found, what = key.rpartition("in_proj_")
    return f"{head}in_proj.{what}" if found and f"{head}in_proj.{what}" in own else key


def _remap_vgg2(key: str) -> str:
    for old, new in (("feature.4.", "feature.5."), ("feature.5.", "feature.6.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
