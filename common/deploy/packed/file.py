"""Packed files: a network in a .safetensors file, its quantized weights as codes of k bits.

The tensors are those of ``common.deploy.packed.tensors``. The metadata are the format, its version, what the network is
as JSON, and a checksum over all of it. ``save`` and ``load`` are for networks with a name, whose description makes a
file complete; ``save_state`` and ``load_into`` for any other, which the user builds again.
"""

import hashlib
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.packed.tensors import check, fill, tensors_of
from common.errors import UserError
from common.flags import shown
from common.quantizers.base import QuantAct
from common.writing import write_whole

FORMAT, STATE_FORMAT, VERSION = "alignq-packed", "alignq-packed-state", 1
ALIGNMENT_FORMAT = "alignq-alignment"
EXPECTED = {
    ALIGNMENT_FORMAT: "an alignment file; expected one that tools/realign.py wrote",
    FORMAT: "a packed network; expected one that tools/export.py wrote",
    STATE_FORMAT: "the packed state of a network without a name; expected one that packed.save_state wrote",
}


def save(network: nn.Module, description: Description, path: Path | str) -> None:
    """Write a network, whole or not at all. It is put into evaluation mode.

    Raises:
        UserError: weights that are not finite, scales that were never initialised, or safetensors is not installed.
        OSError: the file cannot be written.
    """
    _write(network, FORMAT, description.to_json(), Path(path))


def load(path: Path | str, network: str | None = None) -> tuple[nn.Module, Description]:
    """The network of a packed file, in evaluation mode; its weights are decoded once, here.

    Its logits are those of the fake-quantized network, bit for bit.

    Args:
        network: its name as the user typed it; a FILE.py:FUNCTION that the file names is not run without that.
    Raises:
        UserError: the file is not there, damaged, foreign or newer than this program, or safetensors is not installed.
    """
    path = Path(path)
    text, tensors = read_tensors(path, FORMAT)
    try:
        recorded = Description.from_json(text)
    except ValueError as error:
        raise _of_no_network(path, error) from None
    description = recorded.named(network, path)
    try:
        with torch.device("meta"), warnings.catch_warnings():  # shapes alone: nothing is allocated before they fit
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # of a user's own weights
            check(description.build(), tensors)
        built = description.build()
        fill(built, tensors)
    except (ValueError, TypeError, KeyError, RuntimeError, UserError) as error:
        raise _of_no_network(path, error) from None
    return built, description


def _of_no_network(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: no network of this program ({error}); export it again")


def save_state(network: nn.Module, path: Path | str) -> None:
    """Write a network that has no name, such as ``quantize_model`` makes of a user's own. As ``save``."""
    _write(network, STATE_FORMAT, json.dumps(_activations(network)), Path(path))


def load_into(network: nn.Module, path: Path | str) -> nn.Module:
    """Fill a network, built as the one that ``save_state`` wrote, for evaluation: it then computes the same, exactly.

    Args:
        network: ``quantize_model`` of the same architecture, method and bits; its weights do not matter.
    Returns:
        ``network``, in evaluation mode, its weights decoded.
    Raises:
        UserError: as ``load``, or another network than that of the file; it is then left as it was.
    """
    path = Path(path)
    text, tensors = read_tensors(path, STATE_FORMAT)
    try:
        _same_activations(dict(json.loads(text)), _activations(network))
        check(network, tensors)
        fill(network, tensors)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: of another network than this one ({error}); expected one built with the same architecture, "
            "method, bits and options"
        ) from None
    return network.eval().requires_grad_(False)


def _activations(network: nn.Module) -> dict[str, str]:
    """What the quantizers of activations do that no tensor says; weights are values in the file."""
    return {
        name: " ".join(map(str, (module, *module.settings())))
        for name, module in network.named_modules()
        if isinstance(module, QuantAct)
    }


def _same_activations(found: dict[str, str], expected: dict[str, str]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such layer')}")


def _write(network: nn.Module, form: str, text: str, path: Path) -> None:
    write_tensors(tensors_of(network.eval()), form, text, path)


def write_tensors(tensors: dict[str, Tensor], form: str, text: str, path: Path) -> None:
    """A file that ``read_tensors`` reads, whole or not at all; the same content is always the same bytes."""
    torch_files = need("safetensors.torch")
    metadata = {"format": form, "format_version": str(VERSION), "network": text, "sha256": _checksum(text, tensors)}
    write_whole(path, _ordered(torch_files.save(tensors, metadata)))


def _ordered(data: bytes) -> bytes:
    """A safetensors file with the entries of its header sorted, which safetensors writes in any order."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def read_tensors(path: Path, form: str) -> tuple[str, dict[str, Tensor]]:
    """What the network is, and the tensors, of a file whose format, version and checksum are right.

    Raises:
        UserError: it is not there, damaged, of another format or newer than this program, or safetensors is not
            installed.
    """
    metadata, tensors = _read(path, EXPECTED[form].split(";")[0])
    if (found := metadata.get("format")) != form:
        what = EXPECTED[found].split(";")[0] if found in EXPECTED else "a safetensors file"
        raise UserError(f"{path}: {what}, but not {EXPECTED[form]}")
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        raise UserError(
            f"{path}: format version {shown(version)[1:-1]}, this program reads up to {VERSION}; update this program"
        )
    text = metadata.get("network", "")
    if metadata.get("sha256") != _checksum(text, tensors):
        raise UserError(f"{path}: damaged, its checksum does not fit its content; copy or export it again")
    return text, tensors


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, expected: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    safetensors = need("safetensors")
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'there is no such file'}; expected {expected}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy or export it again") from None
