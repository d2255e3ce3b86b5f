"""torchvision, importable beside any build of torch.

torchvision's Python code registers shape-only versions of its compiled operators when it is imported. Beside a torch it
was not compiled for, say a CPU build of torch with the registry's CUDA build of torchvision, the compiled operators
cannot be loaded and the import dies with "operator torchvision::nms does not exist". Models, data sets and transforms
need none of them. So whoever first imports torchvision behind ``import common``, timm for one, meets ``Declared``: it
loads the compiled operators as torchvision itself does and, only when that fails, declares the two that the import
refers to. With a matching pair nothing is declared; a declared operator that is called raises torch's own error.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # declarations live as long as their library does


class Declared(MetaPathFinder):
    """Finds nothing: sees to the operators at the first look for torchvision, and goes."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare()


def declare() -> None:
    """Declare torchvision's operators unless its compiled ones load."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or importlib.util.find_spec("torch") is None:
        return  # the import itself says what is missing
    import torch

    for folder in spec.submodule_search_locations or []:
        for file in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(str(file))
                return
            except OSError:
                continue  # compiled for another torch
    _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in _SCHEMAS:
        _libraries[0].define(schema)


def declared() -> bool:
    """Whether the operators had to be declared."""
    return bool(_libraries)
