"""QONNX files: the integer form's own sums and thresholds, by MultiThreshold's definition and by qonnx's executor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.deploy.description import describe
from common.deploy.files import open_file
from common.deploy.formats import FORMATS
from common.deploy.integer.network import integer_network
from common.deploy.integer.thresholds import Thresholds
from common.deploy.onnx.export import onnx_model
from common.deploy.onnx.multithreshold import DOMAIN, MultiThresholdWriter, float_thresholds, integer_type
from common.errors import UserError
from common.measure.parity import compare_onnx, references, run_watched, total
from common.quantizers import METHODS
from common.quantizers.base import QuantAct
from tests.deploy.conftest import calibrated, images

onnx = pytest.importorskip("onnx", reason="the deploy extra is not installed")
from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402


class MultiThreshold(OpRun):
    """By its definition: how many thresholds of a channel are at most x."""

    op_domain = DOMAIN

    def _run(self, x: Any, thresholds: Any, out_dtype: Any, out_scale: float, out_bias: float) -> tuple[Any]:
        by_channel = np.moveaxis(x, 1, -1)[..., None] >= thresholds
        return (np.moveaxis(out_scale * by_channel.sum(-1) + out_bias, -1, 1).astype(np.float32),)


def by_definition(model: bytes, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
    return ReferenceEvaluator(onnx.load_from_string(model), new_ops=[MultiThreshold]).run(outputs, inputs)


def by_qonnx(model: bytes, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
    modelwrapper = pytest.importorskip("qonnx.core.modelwrapper", reason="the qonnx extra is not installed")
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    proto = onnx.load_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = len(inputs["images"])
    found = execute_onnx(modelwrapper.ModelWrapper(proto).transform(InferShapes()), inputs, True)
    return [found[name] for name in outputs]


ENGINES = {"definition": by_definition, "qonnx": by_qonnx}


def qonnx_proto(model: nn.Module, x: Tensor) -> Any:
    return onnx_model(model, tuple(x.shape[1:]), {}, MultiThresholdWriter)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("name", "bits", "method"),
    [
        ("resnet20_quant", 4, "ours"),
        ("resnet20_quant", 2, "ours"),
        ("densenet_40_quant", 2, "ours"),
        ("MNISTmodel_quant", 4, "ours"),
        ("MNISTmodel_quant", 4, "centroid"),
        ("MNISTmodel_quant", 4, "lsq"),
    ],
)
def test_it_computes_the_integers_of_the_integer_form(name: str, bits: int, method: str, engine: str) -> None:
    model, x = calibrated(name, bits, method), images(name, 1)
    expected: dict[str, Tensor] = {}
    run_watched(
        integer_network(model), x, lambda one: isinstance(one, Thresholds), lambda *seen: expected.update([seen[::2]])
    )
    proto = qonnx_proto(model, x)
    assert expected.keys() == {node.output[0] for node in proto.graph.node if node.op_type == "MultiThreshold"}
    for output in expected:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, 1, ["batch", *expected[output].shape[1:]]))
    found = ENGINES[engine](proto.SerializeToString(), list(expected), {"images": x.numpy()})
    for output, integers in zip(expected, found, strict=True):
        assert np.array_equal(integers, expected[output].numpy()), output


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_one_with_the_codes_of_the_trained_network(method: str, engine: str) -> None:
    """Residual sums that are quantized as a whole too, which the integer form does not have."""
    model, x = calibrated("resnet20_quant", 4, method), images("resnet20_quant", 1)
    rows = compare_onnx(model, qonnx_proto(model, x), x, references(model, x), integers=True, run=ENGINES[engine])
    assert len(rows) == sum(isinstance(layer, QuantAct) for layer in model.modules())
    assert total("all", rows).different <= 1e-4 * total("all", rows).codes
    assert total("all", rows).unexplained == 0


def test_a_file_is_of_one_image_and_never_opened_here(tmp_path: Path) -> None:
    description = describe({"model": "MNISTmodel_quant", "bitW": 4, "abitW": 4}, 10)
    path = tmp_path / "digits.qonnx"
    FORMATS["qonnx"].write(calibrated("MNISTmodel_quant", 4), description, path)
    graph = onnx.load(path).graph
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 28, 28]
    assert {one.name for one in graph.initializer} <= {name for node in graph.node for name in node.input}
    with pytest.raises(UserError, match=r"a QONNX file.*not opened here"):
        open_file(path)


def test_between_the_first_and_the_last_layer_of_ours_nothing_is_scaled() -> None:
    """BatchNorm is in the thresholds, which are integers, and in the signs of its negative scales."""
    proto = qonnx_proto(calibrated("resnet20_quant", 4), images("resnet20_quant", 1))
    kinds = [node.op_type for node in proto.graph.node]
    assert not {"BatchNormalization", "Div", "Erf", "QuantizeLinear"} & set(kinds)
    scaled = [node.output[0] for node in proto.graph.node if node.op_type in ("Mul", "Add")]
    ends = [name for name in scaled if not name.endswith(".ascending") and ".add" not in name]
    assert len(ends) == 1, "before the mean"
    tables = [onnx.numpy_helper.to_array(one) for one in proto.graph.initializer if one.name.endswith(":thresholds")]
    assert sum(bool((table % 1 == 0).all()) for table in tables) == len(tables) - 1, "all but the first"
    notes = {one.quant_parameter_tensor_names[0].value for one in proto.graph.quantization_annotation}
    assert notes == {"INT5"}, "odd integers from -15 to 15"


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_of_floats_is_the_least_that_passes(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scale, shift, steps = (torch.randn(n, generator=draw).double() for n in (5, 5, 7))
    scale[0], steps = 0, steps.sort().values
    ties = torch.arange(7) % 2 == 0
    thresholds, sign = float_thresholds(scale, shift, steps, ties)
    before = thresholds.nextafter(torch.tensor(-torch.inf))
    passed, short = (
        numbers.double() * scale.abs()[:, None] + shift[:, None] - steps for numbers in (thresholds, before)
    )
    assert (passed[1:] > -1e-12).all()
    assert (short[1:] < 1e-12).all()
    assert torch.equal(thresholds[0] < 0, shift[0] > steps), "a scale of zero makes a constant"
    assert sign.tolist() == [-1 if one < 0 else 1 for one in scale.tolist()]


def test_on_a_threshold_of_floats_the_quantizer_has_the_word() -> None:
    steps, ties = torch.tensor([0.5, 0.5]).double(), torch.tensor([True, False])
    thresholds, _ = float_thresholds(torch.ones(1), torch.zeros(1), steps, ties)
    assert (torch.tensor(0.5) >= thresholds).tolist() == [[True, False]]


def test_types_are_the_narrowest() -> None:
    ranges = [(0, 1), (0, 15), (0, 16), (-1, 1), (-15, 15), (-16, 15), (-127, 127), (-128, 128)]
    types = ["UINT1", "UINT4", "UINT5", "INT2", "INT5", "INT5", "INT8", "INT9"]
    assert [integer_type(*one) for one in ranges] == types
