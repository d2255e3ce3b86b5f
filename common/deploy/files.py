"""Any file of a network as a classifier: a checkpoint, or a file of one of the formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy import alignment as alignments
from common.deploy.alignment import Alignment
from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.formats import FORMATS
from common.deploy.formats.base import Format, Logits
from common.deploy.onnx.export import onnx_model
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.openvino import OpenVinoLogits, read_model
from common.deploy.restore import restore
from common.errors import UserError
from common.models import class_logits


@dataclass(frozen=True)
class Classifier:
    """What a file computes.

    Attributes:
        logits: (B, 3, H, W) float32, normalised, to (B, num_classes) class logits on the CPU.
        form: "checkpoint" or the name of a format. notes: lines to tell the user.
        network: what computes them, in evaluation mode; None: an engine of its own.
    """

    path: Path
    form: str
    logits: Logits
    description: Description
    notes: list[str]
    network: nn.Module | None = None

    def line(self) -> str:
        return f"{self.path}: {self.form}, {self.description.line()}"


def open_file(
    path: Path | str,
    device: torch.device | str = "cpu",
    fast: bool = False,
    alignment: Path | None = None,
    **typed: Any,
) -> Classifier:
    """Read a file by its suffix: that of a format, and anything else as a checkpoint.

    Args:
        device: where a network computes; engines of their own take the CPU.
        fast: let OpenVINO compute, on the CPU, a network as its integer graph; the first batch of a size waits for the
            compilation.
        alignment: a file of common.deploy.alignment to apply.
        typed: flags for a checkpoint, as ``restore`` takes them.
    Raises:
        UserError: the file cannot be read, what reads it is not installed, its format is never opened or takes no
            alignment, or the alignment is of another network.
    """
    path = Path(path)
    found = next((one for one in FORMATS.values() if one.suffix == path.suffix), None)
    notes: list[str] = []
    aligned = alignments.load(alignment) if alignment is not None else None
    computes: nn.Module | Logits
    if found is None:
        form, (computes, description, notes) = "checkpoint", restore(path, **typed)
    elif found.read is None:
        readable = dict.fromkeys(one.suffix for one in FORMATS.values() if one.read is not None)
        raise UserError(f"{path}: {found.why_not}; expected a checkpoint, or a file such as {', '.join(readable)}")
    elif aligned is not None and found.engine:
        if fast:
            raise UserError(f"{path}: --fast and --alignment together are for a checkpoint or a packed file")
        form, (computes, description) = found.name, _read_aligned(found, path, aligned, alignment)
    else:
        read = found.read_fast if fast and found.read_fast is not None else found.read
        form, (computes, description) = found.name, read(path, typed.get("model"))
    network: nn.Module | None = None
    if isinstance(computes, nn.Module):
        network = computes
        if aligned is not None and alignment is not None:
            aligned.apply(network, alignment)
        computes = fast_logits(network, description) if fast else _logits(network, device)
    if aligned is not None:
        notes = [*notes, f"{alignment}: re-aligned by {aligned.line()}"]
    return Classifier(path, f"{form}, fast" if fast else form, computes, description, notes, None if fast else network)


def _read_aligned(found: Format, path: Path, aligned: Alignment, alignment: Path | None) -> tuple[Logits, Description]:
    if found.read_aligned is None or alignment is None:
        raise UserError(
            f"--alignment: a file of format {found.name} takes none; export its checkpoint with --alignment {alignment}"
        )
    return found.read_aligned(path, aligned, alignment)


def fast_logits(network: nn.Module, description: Description) -> OpenVinoLogits:
    """The integer graph of a network, run by OpenVINO.

    Raises:
        UserError: as ``onnx_model``, or onnx or openvino is not installed.
    """
    need("openvino")
    return OpenVinoLogits(
        read_model(onnx_model(network, description.image_shape, {}, IntegerWriter).SerializeToString())
    )


def _logits(network: nn.Module, device: torch.device | str) -> Logits:
    network.to(device)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return class_logits(network, images.to(device)).float().cpu()

    return logits
