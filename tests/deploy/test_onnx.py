"""ONNX: the same function in onnxruntime for every method, from codes in the file, at any batch size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.deploy.graph import ClassLogits
from common.deploy.onnx import export as deploy_onnx
from common.deploy.onnx.export import OPSET, export_onnx, onnx_model, open_session
from common.errors import UserError
from common.measure.parity import LayerParity, compare_onnx, references, total
from common.models import build_model
from common.quantizers import METHODS
from common.quantizers.base import QuantAct
from common.quantizers.steps import Search
from tests.deploy.conftest import calibrated, images

onnx = pytest.importorskip("onnx", reason="the deploy extra is not installed")
pytest.importorskip("onnxruntime", reason="the deploy extra is not installed")
CASES = [("resnet20_quant", 4), ("resnet20_quant", 8), ("densenet_40_quant", 4), ("MNISTmodel_quant", 3)]
OTHERS = [(method, bits) for method in METHODS if method != "ours" for bits in (4, 2)]


def compared(model: nn.Module, x: torch.Tensor, proto: Any = None) -> LayerParity:
    proto = onnx_model(model, tuple(x.shape[1:]), {}) if proto is None else proto
    expected = references(model, x)
    rows = compare_onnx(model, proto, x, expected)
    assert [row.layer for row in rows] == list(expected)
    return total("ONNX", rows)


def largest_size(model: nn.Module, bits: int) -> float:
    """Bytes: codes of 4 or 8 bits, everything else in float32, and the nodes and their names."""
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 4)
    others = sum(value.numel() for value in ClassLogits(model).state_dict().values()) - weights
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    acts = [act for act in model.modules() if isinstance(act, QuantAct)]
    bisections = sum(act.bits for act in acts if any(isinstance(step, Search) for step in act.steps()))
    return weights * (0.5 if bits <= 4 else 1) + 4 * others + 3e3 * len(convolutions) + 1e3 * bisections + 4096


@pytest.mark.parametrize(("name", "bits"), [*CASES, ("resnet50_dann", 4)])
def test_layers_give_the_same_codes(name: str, bits: int) -> None:
    row = compared(calibrated(name, bits), images(name, 1))
    assert row.different <= 1e-4 * row.codes
    assert row.distance <= (2**bits - 1) * 2**-24 * 64
    assert row.unexplained == 0


@pytest.mark.parametrize(("method", "bits"), OTHERS)
def test_layers_of_every_method_give_the_same_codes_from_a_small_file(method: str, bits: int) -> None:
    model, x = calibrated("resnet20_quant", bits, method), images("resnet20_quant", 1)
    proto = onnx_model(model, tuple(x.shape[1:]), {})
    row = compared(model, x, proto)
    assert row.codes > 180_000
    assert row.different <= 1e-4 * row.codes
    assert row.unexplained == 0
    content = proto.SerializeToString()
    assert len(content) < largest_size(model, bits)
    if bits == 2:  # no sum of these images sits on a threshold, so that only the last layer's rounding may differ
        logits = open_session(content, threads=1).run(None, {"images": x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), ClassLogits(model)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "bits", "arguments"),
    [
        ("resnet20_quant", 32, {}),
        ("resnet20_quant", 32, {"stage": "align"}),
        ("densenet_40_quant", 2, {"levels": "published"}),
        ("resnet50_dsan", 32, {}),
        ("resnet56_quant", 2, {"method": "lsq"}),
        ("MNISTmodel_quant", 2, {"method": "llsq"}),
    ],
    ids=str,
)
def test_other_networks_and_options_give_their_logits(name: str, bits: int, arguments: dict) -> None:
    model, x = calibrated(name, bits, **arguments), images(name, 1)
    content = onnx_model(model, tuple(x.shape[1:]), {}).SerializeToString()
    logits = open_session(content, threads=1).run(None, {"images": x.numpy()})[0]
    expected = ClassLogits(model)(x).detach()
    assert float((torch.from_numpy(logits) - expected).abs().max()) < 2e-3 * float(expected.abs().max())


@pytest.mark.parametrize("bits", [4, 8])
def test_published_levels_are_stored_as_codes(bits: int) -> None:
    model, x = calibrated("MNISTmodel_quant", bits, levels="published"), images("MNISTmodel_quant", 1)
    proto = onnx_model(model, tuple(x.shape[1:]), {})
    (codes,) = [entry for entry in proto.graph.initializer if entry.name == "feature.5.codes"]
    assert codes.data_type == (onnx.TensorProto.UINT8 if bits == 4 else onnx.TensorProto.UINT16)  # 2 r n + 1 levels
    assert compared(model, x, proto).unexplained == 0


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_file_is_small_and_runs_at_any_batch_size(name: str, bits: int, tmp_path: Path) -> None:
    model, shape = calibrated(name, bits), tuple(images(name).shape[1:])
    export_onnx(model, tmp_path / "model.onnx", shape)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").stat().st_size < largest_size(model, bits)
    assert [(entry.domain, entry.version) for entry in onnx.load(tmp_path / "model.onnx").opset_import] == [("", OPSET)]
    session = open_session(str(tmp_path / "model.onnx"), threads=1)
    x = images(name, 3)
    together = session.run(None, {"images": x.numpy()})[0]
    alone = session.run(None, {"images": x[:1].numpy()})[0]
    assert together.shape == (3, 10)
    torch.testing.assert_close(torch.from_numpy(alone), torch.from_numpy(together[:1]), atol=0.2, rtol=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_the_weights_are_the_networks_own_bit_for_bit(method: str) -> None:
    model, x = calibrated("MNISTmodel_quant", 4, method), images("MNISTmodel_quant", 1)
    proto = onnx_model(model, tuple(x.shape[1:]), {})
    conv = model.feature[5]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("feature.5.weight", 1, list(conv.weight.shape)))
    (weight,) = open_session(proto.SerializeToString(), 1).run(["feature.5.weight"], {"images": x.numpy()})
    assert torch.equal(torch.from_numpy(weight), conv.weight_quantizer(conv.weight).detach())


def test_a_wrong_weight_code_is_noticed() -> None:
    model, x = calibrated("MNISTmodel_quant", 4), images("MNISTmodel_quant", 1)
    proto = onnx_model(model, tuple(x.shape[1:]), {})
    (codes,) = [entry for entry in proto.graph.initializer if entry.name == "feature.5.codes"]
    codes.raw_data = bytes(255 - byte for byte in codes.raw_data)
    row = compared(model, x, proto)
    assert row.unexplained > 100


def test_scales_that_were_never_set_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.conv0\..*never set"):
        onnx_model(build_model("resnet20_quant", method="lsq", bitW=32, abitW=4), (3, 32, 32), {})


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx is not installed.*\[deploy\]"):
        deploy_onnx.onnx_model(calibrated("MNISTmodel_quant", 4), (3, 28, 28), {})
