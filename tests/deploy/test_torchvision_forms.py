"""Torchvision's classifiers in every form that those of the tasks have."""

from pathlib import Path

import pytest
import torch

from common.conversion.calibrate import calibrate
from common.deploy.onnx.export import export_onnx, onnx_model, open_session
from common.deploy.onnx.integer import IntegerWriter
from common.measure.parity import compare_integer, compare_onnx, openvino_run, references, total
from common.models import build_model

SHAPE = (3, 32, 32)


def images() -> torch.Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_an_onnx_file_computes_the_function_of_the_network(name: str, tmp_path: Path) -> None:
    """With float activations: no code can fall to the other side of a threshold."""
    torch.manual_seed(0)
    network = calibrate(build_model(f"torchvision:{name}", bitW=4, abitW=32, num_classes=5), [images()]).eval()
    export_onnx(network, tmp_path / "network.onnx", SHAPE)
    (logits,) = open_session(str(tmp_path / "network.onnx"), threads=1).run(None, {"images": images().numpy()})
    expected = network(images())
    assert expected.std() > 0.1
    assert (torch.from_numpy(logits) - expected).abs().max() < 1e-3 * expected.std()


@torch.no_grad()
def test_integers_and_bytes_give_its_codes() -> None:
    torch.manual_seed(0)
    network = calibrate(build_model("torchvision:resnet18", bitW=4, abitW=4, num_classes=5), [images()]).eval()
    expected = references(network, images())
    int8 = onnx_model(network, SHAPE, {}, IntegerWriter)
    for rows in (
        compare_integer(network, images(), expected),
        compare_onnx(network, int8, images(), expected, integers=True),
        compare_onnx(network, int8, images(), expected, integers=True, run=openvino_run),
    ):
        whole = total("all", rows)
        assert whole.codes > 50_000
        assert whole.different <= 1e-4 * whole.codes
        assert whole.unexplained == 0
