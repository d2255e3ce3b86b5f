"""Architectures of others at 8, 4 and 2 bits: calibrated, trained, packed to hardly more than codes and what is float."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.conversion import LeftFloat, quantize_model
from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.measure.coverage import coverage
from common.models.foreign import float_network

CLASSES = 4
STEPS = {8: 4, 4: 6, 2: 16}


def convnext() -> nn.Module:
    """ConvNeXt-Tiny's layers, three of its blocks."""
    from torchvision.models.convnext import CNBlockConfig

    from common.vision import models

    return models.ConvNeXt([CNBlockConfig(64, 128, 1), CNBlockConfig(128, 256, 1), CNBlockConfig(256, None, 1)], 0.1, num_classes=CLASSES)  # fmt: skip


def vit() -> nn.Module:
    """ViT-B/16's layers, two narrow blocks."""
    from common.vision import models

    return models.VisionTransformer(32, 16, num_layers=2, num_heads=4, hidden_dim=256, mlp_dim=1024, num_classes=CLASSES)  # fmt: skip


def of_timm() -> nn.Module:
    import common.vision  # noqa: F401  torchvision, which timm imports, beside any build of torch

    pytest.importorskip("timm")
    return float_network("timm:mobilenetv3_small_100", CLASSES)


def of_torchvision() -> nn.Module:
    return float_network("torchvision:mobilenet_v3_small", CLASSES)


def converted(make: Callable[[], nn.Module], method: str, bits: int) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftFloat)
        return quantize_model(make(), method, bits, bits, linear=True, all_convs=True, inplace=True)


def batch(seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(32) % CLASSES
    looks = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 2 * F.interpolate(looks[labels], 32) + 0.1 * noise, labels


def least_bytes(network: nn.Module, bits: int) -> float:
    """Codes, parameters that are none, and the statistics of BatchNorms."""
    covered = coverage(network, batch(0)[0][:1])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    floats = covered.parameters - covered.quantized_parameters + 2 * sum(norm.num_features for norm in norms)
    return covered.quantized_parameters * bits / 8 + 4 * floats


@pytest.mark.parametrize("bits", STEPS)
@pytest.mark.parametrize("method", ["ours", "uniform", "lsq"])
@pytest.mark.parametrize("make", [of_torchvision, of_timm, convnext, vit])
def test_it_trains_and_its_file_is_small_and_exact(
    make: Callable[[], nn.Module], method: str, bits: int, tmp_path: Path
) -> None:
    network = calibrate(converted(make, method, bits), [batch(0)[0]]).train()
    twin = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), 3e-4)
    losses = []
    x, labels = batch(1)
    for _ in range(STEPS[bits]):
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(map(math.isfinite, losses))
    assert min(losses[-4:]) < losses[0]
    path = tmp_path / "network.safetensors"
    packed.save_state(network, path)
    assert path.stat().st_size <= 1.05 * least_bytes(network, bits)
    packed.load_into(twin, path)
    with torch.no_grad():
        assert torch.equal(twin(x[:4]), network.eval()(x[:4]))
