"""Any file of a network as a classifier: a checkpoint, a packed file or an ONNX file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy import packed
from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.onnx.export import open_session
from common.deploy.restore import restore
from common.errors import UserError
from common.models import class_logits

PACKED, ONNX, PROGRAM = ".safetensors", ".onnx", ".pt2"


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


def open_file(path: Path, device: torch.device | str = "cpu", fast: bool = False, **typed: Any) -> Classifier:
    """Read a file by its suffix: .safetensors, .onnx, and anything else as a checkpoint.

    Args:
        device: where a checkpoint or a packed network computes; onnxruntime takes the CPU.
        fast: compile a checkpoint or a packed network to the int8 layers of common.deploy.integer.fast, on the CPU; the
            first batch waits for that, and none may be larger.
        typed: flags for a checkpoint, as ``restore`` takes them.
    Raises:
        UserError: the file cannot be read, what reads it is not installed, the fast path does not know it, or it is a
            .pt2: reading one may run what it holds.
    """
    if path.suffix == PROGRAM:
        raise UserError(
            f"{path}: a program of torch.export, which may run what it holds when it is loaded, so it is not opened "
            "here; expected a checkpoint, a .safetensors or a .onnx file"
        )
    if path.suffix == ONNX:
        if fast:
            raise UserError(f"{path}: --fast compiles a checkpoint or a packed file; onnxruntime runs an ONNX file")
        return _open_onnx(path)
    notes: list[str] = []
    if path.suffix == PACKED:
        form, (network, description) = "packed", packed.load(path)
    else:
        form, (network, description, notes) = "checkpoint", restore(path, **typed)
    if fast:
        return Classifier(path, f"{form}, fast", FastLogits(network), description, notes)
    return Classifier(path, form, _logits(network, device), description, notes)


class FastLogits:
    """(B, C, H, W) images to class logits by the fast path, compiled at the first batch; smaller ones are filled up.

    Raises:
        UserError: as ``fast_graph``, at once.
    """

    def __init__(self, network: nn.Module) -> None:
        from common.deploy.integer.fast import fast_graph  # its import brings Inductor, which takes a second

        self.graph = fast_graph(network)  # refuses at once what it does not know
        self.compiled: Any = None

    def __call__(self, images: Tensor) -> Tensor:
        from common.deploy.integer.fast import CompiledNetwork

        if self.compiled is None:
            self.compiled = CompiledNetwork(self.graph, tuple(images.shape))
        missing = self.compiled.image_shape[0] - len(images)
        filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
        return self.compiled(filled)[: len(images)]


def _logits(network: nn.Module, device: torch.device | str) -> Callable[[Tensor], Tensor]:
    network.to(device)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return class_logits(network, images.to(device)).float().cpu()

    return logits


def _open_onnx(path: Path) -> Classifier:
    """Its first output are class logits; its metadata have the description under "network"."""
    need("onnxruntime")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; expected an ONNX file")
    try:
        session = open_session(str(path))
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
