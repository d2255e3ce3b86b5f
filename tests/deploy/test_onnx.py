"""ONNX: the same function in onnxruntime, from codes in the file, at any batch size; and torch.export."""

from pathlib import Path

import pytest
import torch

from common.deploy import onnx as deploy_onnx
from common.deploy.graph import ClassLogits
from common.deploy.onnx import OPSET, export_onnx, onnx_model, open_session
from common.deploy.parity import compare_onnx_layers
from common.errors import UserError
from common.models import build_model
from tests.deploy.conftest import calibrated, images

onnx = pytest.importorskip("onnx", reason="the deploy extra is not installed")
pytest.importorskip("onnxruntime", reason="the deploy extra is not installed")
CASES = [("resnet20_quant", 4), ("resnet20_quant", 8), ("densenet_40_quant", 4), ("MNISTmodel_quant", 3)]


@pytest.mark.parametrize(("name", "bits"), [*CASES, ("resnet50_dann", 4)])
def test_layers_give_the_same_codes(name: str, bits: int) -> None:
    model, x = calibrated(name, bits), images(name, 1)
    rows = compare_onnx_layers(model, onnx_model(model, tuple(x.shape[1:]), {}), x)
    assert sum(row.different for row in rows) <= 1e-4 * sum(row.codes for row in rows)
    assert max(row.distance for row in rows) <= (2**bits - 1) * 2**-24 * 64


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_file_is_small_and_runs_at_any_batch_size(name: str, bits: int, tmp_path: Path) -> None:
    model, shape = calibrated(name, bits), tuple(images(name).shape[1:])
    export_onnx(model, tmp_path / "model.onnx", shape)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    weights = sum(p.numel() for key, p in model.named_parameters() if p.ndim == 4)
    others = sum(value.numel() for value in ClassLogits(model).state_dict().values()) - weights
    size = (tmp_path / "model.onnx").stat().st_size
    overhead = 3e3 * sum(p.ndim == 4 for p in model.parameters())  # nodes and names
    assert size < weights * (0.5 if bits <= 4 else 1) + 4 * others + overhead + 4096
    assert [(entry.domain, entry.version) for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [("", OPSET)]
    session = open_session(str(tmp_path / "model.onnx"), threads=1)
    x = images(name, 3)
    together = session.run(None, {"images": x.numpy()})[0]
    alone = session.run(None, {"images": x[:1].numpy()})[0]
    assert together.shape == (3, 10)
    torch.testing.assert_close(torch.from_numpy(alone), torch.from_numpy(together[:1]), atol=0.2, rtol=0.1)


def test_a_wrong_weight_code_is_noticed() -> None:
    model, x = calibrated("MNISTmodel_quant", 4), images("MNISTmodel_quant", 1)
    proto = onnx_model(model, tuple(x.shape[1:]), {})
    (codes,) = [entry for entry in proto.graph.initializer if entry.name == "feature.5.codes"]
    codes.raw_data = bytes(255 - byte for byte in codes.raw_data)
    assert sum(row.different for row in compare_onnx_layers(model, proto, x)) > 100


@torch.no_grad()
def test_torch_export_gives_the_same_logits_at_another_batch_size() -> None:
    model = ClassLogits(calibrated("MNISTmodel_quant", 4)).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images("MNISTmodel_quant"),), dynamic_shapes=({0: batch},))
    x = images("MNISTmodel_quant", 5)
    assert torch.equal(program.module()(x), model(x))


def test_scales_that_were_never_set_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.conv0\..*never set"):
        onnx_model(build_model("resnet20_quant", method="lsq", bitW=32, abitW=4), (3, 32, 32), {})


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed.*\[deploy\]"):
        deploy_onnx.onnx_model(calibrated("MNISTmodel_quant", 4), (3, 28, 28), {})
