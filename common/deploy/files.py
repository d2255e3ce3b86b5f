"""Any file of a network as a classifier: a checkpoint, a packed file or an ONNX file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy import packed
from common.deploy.description import Description, class_logits
from common.deploy.restore import restore
from common.errors import UserError

PACKED, ONNX = ".safetensors", ".onnx"


@dataclass(frozen=True)
class Classifier:
    """What a file computes.

    Attributes:
        logits: (B, 3, H, W) float32, normalised, to (B, num_classes) class logits on the CPU.
        form: "checkpoint", "packed" or "onnx". notes: lines to tell the user.
    """

    path: Path
    form: str
    logits: Callable[[Tensor], Tensor]
    description: Description
    notes: list[str]

    def line(self) -> str:
        return f"{self.path}: {self.form}, {self.description.line()}"


def open_file(path: Path, device: torch.device | str = "cpu", **typed: Any) -> Classifier:
    """Read a file by its suffix: .safetensors, .onnx, and anything else as a checkpoint.

    Args:
        device: where a checkpoint or a packed network computes; onnxruntime takes the CPU.
        typed: flags for a checkpoint, as ``restore`` takes them.
    Raises:
        UserError: the file cannot be read, or what reads it is not installed.
    """
    if path.suffix == ONNX:
        return _open_onnx(path)
    if path.suffix == PACKED:
        network, description = packed.load(path)
        return Classifier(path, "packed", _logits(network, description, device), description, [])
    network, description, notes = restore(path, **typed)
    return Classifier(path, "checkpoint", _logits(network, description, device), description, notes)


def _logits(network: nn.Module, description: Description, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    network.to(device)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return class_logits(network, description.kind, images.to(device)).float().cpu()

    return logits


def _open_onnx(path: Path) -> Classifier:
    """Its first output are class logits; its metadata have the description under "network"."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f'{path}: ONNX files need onnxruntime: python -m pip install -e ".[deploy]"') from None
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an ONNX file")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        description = Description.from_json(session.get_modelmeta().custom_metadata_map["network"])
    except KeyError:
        raise UserError(f"{path}: an ONNX file without a description; expected one of tools/export.py") from None
    except Exception as error:  # onnxruntime's errors share no narrower base
        raise UserError(f"{path}: not an ONNX file of this program ({error})") from None
    name = session.get_inputs()[0].name
    return Classifier(
        path,
        "onnx",
        lambda images: torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0]),
        description,
        [],
    )
