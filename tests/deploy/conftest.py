"""Networks with statistics as training leaves them, and negative and zero BatchNorm scales among them."""

import copy
import functools

import pytest
import torch
from torch import nn

from common.models import build_model
from tests.conftest import fill_by_name

SIZES = {"MNISTmodel_quant": 28}


def images(name: str, batch: int = 2) -> torch.Tensor:
    size = SIZES.get(name, 32)
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@functools.cache  # the exporters work on copies
@torch.no_grad()
def calibrated(name: str, bits: int, method: str = "ours", **arguments: object) -> nn.Module:
    """A network whose BatchNorm statistics and learned scales are those of random images, in evaluation mode."""
    if name.startswith("resnet50"):
        arguments.setdefault("quant_shortcut", True)
    torch.manual_seed(0)
    model = fill_by_name(build_model(name, method=method, bitW=bits, abitW=bits, **arguments)).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.weight[::5] *= -1
            module.weight[1::7] = 0
    getattr(model, "features", model)(images(name, 4))
    return model.eval()


@pytest.fixture
def small() -> nn.Module:
    return copy.deepcopy(calibrated("resnet20_quant", 4))
