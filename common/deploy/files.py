"""Any file of a network as a classifier: a checkpoint, or a file of one of the formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.deploy.description import Description
from common.deploy.formats import FORMATS
from common.deploy.formats.base import Logits
from common.deploy.restore import restore
from common.errors import UserError
from common.models import class_logits


@dataclass(frozen=True)
class Classifier:
    """What a file computes.

    Attributes:
        logits: (B, 3, H, W) float32, normalised, to (B, num_classes) class logits on the CPU.
        form: "checkpoint" or the name of a format. notes: lines to tell the user.
    """

    path: Path
    form: str
    logits: Logits
    description: Description
    notes: list[str]

    def line(self) -> str:
        return f"{self.path}: {self.form}, {self.description.line()}"


def open_file(path: Path | str, device: torch.device | str = "cpu", fast: bool = False, **typed: Any) -> Classifier:
    """Read a file by its suffix: that of a format, and anything else as a checkpoint.

    Args:
        device: where a network computes; engines of their own take the CPU.
        fast: compile the network to the int8 layers of common.deploy.integer.fast, on the CPU; the first batch waits
            for that, and none may be larger.
        typed: flags for a checkpoint, as ``restore`` takes them.
    Raises:
        UserError: the file cannot be read, what reads it is not installed, the fast path does not know it, or its
            format is never opened.
    """
    path = Path(path)
    found = next((one for one in FORMATS.values() if one.suffix == path.suffix), None)
    notes: list[str] = []
    computes: nn.Module | Logits
    if found is None:
        form, (computes, description, notes) = "checkpoint", restore(path, **typed)
    elif found.read is None:
        readable = [one.suffix for one in FORMATS.values() if one.read is not None]
        raise UserError(f"{path}: {found.why_not}; expected a checkpoint, or a file such as {', '.join(readable)}")
    elif fast and found.engine:
        raise UserError(
            f"{path}: --fast compiles a checkpoint or a packed file; {found.engine} runs an {found.name} file"
        )
    else:
        form, (computes, description) = found.name, found.read(path, typed.get("model"))
    if fast and isinstance(computes, nn.Module):
        return Classifier(path, f"{form}, fast", FastLogits(computes), description, notes)
    logits = _logits(computes, device) if isinstance(computes, nn.Module) else computes
    return Classifier(path, form, logits, description, notes)


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


def _logits(network: nn.Module, device: torch.device | str) -> Logits:
    network.to(device)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return class_logits(network, images.to(device)).float().cpu()

    return logits
