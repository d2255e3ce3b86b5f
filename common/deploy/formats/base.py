"""What a deploy format is: how a network is written in it, and how a file of it classifies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from common.deploy.alignment import Alignment
from common.deploy.description import Description

Logits = Callable[[Tensor], Tensor]  # (B, 3, H, W) float32, normalised, to (B, num_classes) on the CPU


Read = Callable[[Path, str | None], tuple[nn.Module | Logits, Description]]


@dataclass(frozen=True)
class Format:
    """A new one is one file and one line in ``FORMATS``.

    Attributes:
        name: in ``FORMATS`` and of ``--format``. about: a line for --help.
        suffix: of its files; of formats with the same one, the first opens them.
        write: (network in evaluation mode, description, path) to a file that is there whole or not at all.
        read: a path, and the network's name if the user typed it, to a network, or to logits where an engine of its
            own computes them, and the description; raises UserError for what is no such file. None: files of this
            format are written and never opened here.
        read_aligned: as ``read`` for an engine of its own, with an alignment and the path of that; None: it takes none.
        read_fast: the same, computed by OpenVINO; None: only a network that ``read`` gives can be.
        why_not: why they are not opened. engine: what computes them, where it is not torch.
        beside: suffix of the second file of a format that has two.
    """

    name: str
    suffix: str
    about: str
    write: Callable[[nn.Module, Description, Path], None]
    read: Read | None = None
    read_aligned: Callable[[Path, Alignment, Path], tuple[Logits, Description]] | None = None
    read_fast: Read | None = None
    why_not: str = ""
    engine: str = ""
    beside: str = ""

    def files(self, path: Path) -> list[Path]:
        """Those that ``write`` has made at a path."""
        return [path, *([path.with_suffix(self.beside)] if self.beside else [])]
