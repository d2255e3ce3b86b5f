"""Programs of torch.export, float32 (common.deploy.program): written here, opened by torch alone."""

from pathlib import Path

from torch import nn

from common.deploy.description import Description
from common.deploy.formats.base import Format
from common.deploy.program import save_program


def write(network: nn.Module, description: Description, path: Path) -> None:
    save_program(network, path, description.image_shape, {"network": description.to_json()})


PT2 = Format(
    "pt2",
    ".pt2",
    "torch.export, float32; for torch.export.load, which is for files one trusts",
    write,
    why_not="a program of torch.export, which may run what it holds when it is loaded, so it is not opened here",
)
