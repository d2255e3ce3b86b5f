"""torchvision, importable beside any build of torch.

torchvision's Python code registers shape-only versions of its compiled operators when it is imported. Beside a torch it
was not compiled for, say a CPU build of torch with the registry's CUDA build of torchvision, the compiled operators
cannot be loaded and the import dies with "operator torchvision::nms does not exist". Models, data sets and transforms
need none of them. So this module first loads the compiled operators as torchvision itself does and, only when that
fails, declares the two that the import refers to. Every other module takes torchvision from here:

    from common.vision import datasets, models, transforms

With a matching pair nothing is declared; a declared operator that is called raises torch's own error.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = torch.library.Library("torchvision", "FRAGMENT")  # its declarations live as long as it does


def _compiled_operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec and spec.submodule_search_locations) or []:
        for file in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(str(file))
                return True
            except OSError:
                continue  # compiled for another torch
    return False


if not _compiled_operators_load():
    for _schema in _SCHEMAS:
        _library.define(_schema)

from torchvision import datasets, models, transforms  # noqa: E402

__all__ = ["datasets", "models", "transforms"]
