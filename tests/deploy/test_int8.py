"""The integer graph: the trained network's codes in onnxruntime and OpenVINO, and files that need the engine alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.deploy.description import Description, describe
from common.deploy.files import open_file
from common.deploy.formats import FORMATS
from common.deploy.graph import ClassLogits
from common.deploy.onnx.epilogue import write_integers
from common.deploy.onnx.export import onnx_model
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.onnx.nodes import Nodes
from common.deploy.onnx.smooth import odd_through
from common.errors import UserError
from common.measure.parity import codes_alone, compare_onnx, onnxruntime_run, openvino_run, references, total
from common.models import build_model
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import QuantAct
from common.quantizers.layers import QuantConv2d, QuantLinear
from tests.conftest import REPOSITORY
from tests.deploy.conftest import calibrated, images

onnx = pytest.importorskip("onnx", reason="the deploy extra is not installed")
pytest.importorskip("openvino", reason="the deploy extra is not installed")
pytest.importorskip("onnxruntime", reason="the deploy extra is not installed")
ENGINES = {"onnxruntime": onnxruntime_run, "OpenVINO": openvino_run}


def int8_model(model: nn.Module, x: Tensor) -> Any:
    return onnx_model(model, tuple(x.shape[1:]), {}, IntegerWriter)


def bytewise(proto: Any, kind: str = "Conv") -> int:
    """How many convolutions, or products of a Linear layer, multiply bytes with bytes."""
    made_by = {output: node for node in proto.graph.node for output in node.output}
    products = [node for node in proto.graph.node if node.op_type == kind]
    moving = ("MaxPool", "Concat")

    def is_read(name: str) -> bool:
        node = made_by.get(name)
        while node is not None and node.op_type in moving:
            node = made_by.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return sum(is_read(node.input[0]) and is_read(node.input[1]) for node in products)


CASES = [
    *(("resnet20_quant", bits, "ours") for bits in (1, 2, 3, 4, 6, 8)),  # every epilogue; bytes split at 8
    *(("resnet20_quant", 4, method) for method in METHODS if method != "ours"),
    *(("resnet20_quant", 8, method) for method in ("dorefa", "lsq", "centroid")),
    *(("MNISTmodel_quant", bits, "ours") for bits in (4, 8)),
    ("resnet50_dann", 8, "ours"),  # a shortcut that OpenVINO would scale twice
    ("resnet50_dann", 8, "dorefa"),
]


@pytest.mark.parametrize(("name", "bits", "method"), CASES)
def test_layers_give_the_codes_of_the_trained_network_in_both_engines(name: str, bits: int, method: str) -> None:
    model, x = calibrated(name, bits, method), images(name, 1)
    expected, proto = references(model, x), int8_model(model, x)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
    assert bytewise(proto) >= convolutions - 1, "all but the first"
    for run in ENGINES.values():
        rows = compare_onnx(model, proto, x, expected, integers=True, run=run)
        assert [row.layer for row in rows] == list(expected)
        whole = total("all", rows)
        assert whole.different <= 1e-4 * whole.codes
        assert whole.unexplained == 0


def test_quantiles_of_three_bits_are_a_polynomial_and_unlike_steps_have_knees() -> None:
    """An engine is faster with the polynomial, which only thresholds on a smooth odd curve have."""
    x = images("MNISTmodel_quant", 1)
    kinds = [
        {node.op_type for node in int8_model(calibrated("MNISTmodel_quant", 3, method), x).graph.node}
        for method in ("ours", "apot")
    ]
    assert ["PRelu" in found for found in kinds] == [False, True]


def test_symmetric_weights_of_8_bits_are_one_product_each() -> None:
    """The 256th level costs the sum of the inputs under the kernel, 255 levels do not."""
    x = images("MNISTmodel_quant", 1)
    for levels, products in (("exact", 3), ("symmetric", 2)):
        model = calibrated("MNISTmodel_quant", 8, levels=levels)
        proto = int8_model(model, x)
        assert sum(node.op_type == "Conv" for node in proto.graph.node) == products
        for run in ENGINES.values():
            row = total("all", compare_onnx(model, proto, x, references(model, x), integers=True, run=run))
            assert row.different <= 1e-4 * row.codes
            assert row.unexplained == 0


def test_the_comparison_notices_a_wrong_weight() -> None:
    model, x = calibrated("MNISTmodel_quant", 4), images("MNISTmodel_quant")
    proto = int8_model(model, x)
    (codes,) = [one for one in proto.graph.initializer if one.name.endswith(".codes") and one.dims[0] == 48]
    values = np.frombuffer(codes.raw_data, np.int8).copy()
    values[::7] *= -1
    codes.raw_data = values.tobytes()
    expected = references(model, x)
    for run in ENGINES.values():
        assert total("all", compare_onnx(model, proto, x, expected, integers=True, run=run)).unexplained > 100


@pytest.mark.parametrize(
    ("name", "bits"), [("mobilenet_v2", 4), ("densenet121", 4), ("shufflenet_v2_x0_5", 2), ("mobilenet_v3_small", 2)]
)
def test_networks_of_others_compute_their_function_in_bytes(name: str, bits: int) -> None:
    """By their codes, or where the bound of rounding errors is not known, by logits: at 2 bits no sum of this image is
    near a threshold."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    model = build_model(f"torchvision:{name}", method="lsq", bitW=bits, abitW=bits, num_classes=5)
    model = calibrate(model, [x]).eval()
    proto = int8_model(model, x)
    quantized = [layer for layer in model.modules() if isinstance(layer, QuantConv2d)]
    assert bytewise(proto) == sum(isinstance(layer.input_quantizer, QuantAct) for layer in quantized) > 0
    for run in ENGINES.values():
        if bits == 4:
            rows = compare_onnx(model, proto, x[:1], references(model, x[:1]), integers=True, run=run)
            assert total("all", rows).unexplained == 0
        else:
            (logits,) = run(proto.SerializeToString(), ["logits"], {"images": x[:1].numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), model(x[:1]).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "bits", "products"), [("ours", 4, 1), ("ours", 8, 2), ("lsq", 4, 1), ("centroid", 4, 1)]
)
def test_linear_layers_multiply_bytes(method: str, bits: int, products: int) -> None:
    """Also of inputs whose levels lie about a mean that is not zero, as those of "ours" before a Linear layer do."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32)
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(vit.heads.head.weight)
    model = quantize_model(vit, method, bitW=bits, abitW=bits, linear=True, all_convs=True)
    model = calibrate(model, [x + 0.5]).eval()
    proto = int8_model(model, x)
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert bytewise(proto, "MatMul") == products * len(layers) > 0
    for run in ENGINES.values():
        row = total("all", compare_onnx(model, proto, x, codes_alone(model, x), integers=True, run=run))
        assert row.different <= 1e-4 * row.codes
        if bits == 4:  # no sum of these images lies on a threshold
            (logits,) = run(proto.SerializeToString(), ["logits"], {"images": x.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), model(x).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "bits"), [(name, bits) for name in METHODS for bits in (2, 3, 4, 8) if bits in METHODS[name].act_bits]
)
def test_an_epilogue_gives_the_integers_of_a_quantizers_levels(method: str, bits: int) -> None:
    act: Any = METHODS[method].activation(bits, make_scheme(method, bitW=4, abitW=bits))
    x = torch.cat((torch.linspace(-3, 3, 2001), torch.tensor([0.0, 50.0, -50.0])))
    act.train()(x.abs())  # gives learned scales a value
    found = act.eval().integers()
    assert found is not None
    nodes = Nodes()
    write_integers(nodes, act, found[0], "integers", "x")
    helper = onnx.helper
    shape = [helper.make_tensor_value_info(name, 1, [len(x)]) for name in ("x", "integers")]
    graph = helper.make_graph(nodes.nodes, "one", shape[:1], shape[1:], nodes.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    low = act.code_range()[0]
    expected = found[0][act.codes(act(x).detach()) - low].float()
    position = act.position(x.double())
    clear = (position - position.floor() - 0.5).abs() > 2**bits * 2**-20  # of a threshold
    for run in ENGINES.values():
        (out,) = run(model.SerializeToString(), ["integers"], {"x": x.numpy()})
        assert torch.equal(torch.from_numpy(np.asarray(out))[clear], expected[clear])


@pytest.mark.parametrize(
    ("method", "bits", "terms"), [("ours", 4, 5), ("ours", 6, 7), ("ours", 8, 9), ("centroid", 4, 6), ("apot", 4, None)]
)
def test_smooth_thresholds_are_on_a_short_polynomial(method: str, bits: int, terms: int | None) -> None:
    """As near as float32 lets a quantizer's own steps be; levels that are not quantiles of anything have none."""
    act = METHODS[method].activation(bits, make_scheme(method, bitW=4, abitW=bits)).train()
    act(torch.linspace(0, 3, 100))
    thresholds, _ = act.eval().thresholds()
    odd = odd_through(thresholds)
    assert (odd and len(odd.coefficients)) == terms
    if odd is not None:
        around = torch.cat((thresholds - 1e-4, thresholds + 1e-4)).double()
        assert torch.equal(odd(around).round(), act.position(around).round() - act.code_range()[0])
        ends = odd(torch.tensor([-50.0, 50.0])).round().tolist()
        assert ends == [0, len(thresholds)]


@pytest.fixture(scope="module")
def described() -> tuple[nn.Module, Description]:
    description = describe({"model": "MNISTmodel_quant", "bitW": 4, "abitW": 4}, 10)
    torch.manual_seed(0)
    return description.build(), description


def written(format: str, described: tuple[nn.Module, Description], folder: Path) -> Path:
    path = folder / f"digits{FORMATS[format].suffix}"
    FORMATS[format].write(*described, path)
    return path


@pytest.mark.parametrize("format", ["onnx-int8", "openvino"])
def test_a_file_runs_with_the_engine_alone(
    format: str, described: tuple[nn.Module, Description], tmp_path: Path
) -> None:
    """Class names and preprocessing are in the file, and the batch is of any size or set by the reader."""
    network, description = described
    path = written(format, described, tmp_path)
    script = f"""
import json, sys
import numpy as np, openvino
model = openvino.Core().read_model({str(path)!r})
about = json.loads(model.get_rt_info(["framework", "network"]).value)
images = np.load("images.npy")
dynamic = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
together = dynamic(images)[0]
model.reshape([1, 3, 28, 28])
fixed = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
alone = np.concatenate([fixed(images[i : i + 1])[0] for i in range(len(images))])
assert not [name for name in sys.modules if name.split(".")[0] in ("common", "torch")]
np.savez("out.npz", together=together, alone=alone)
print(json.dumps([about["classes"], about["preprocessing"]]))
"""
    x = images("MNISTmodel_quant", 3)
    np.save(tmp_path / "images.npy", x.numpy())
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [list(description.classes), description.preprocessing]
    expected = ClassLogits(network)(x).detach()
    for logits in np.load(tmp_path / "out.npz").values():
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("format", ["onnx", "onnx-int8", "openvino", "packed"])
def test_fast_is_openvino_whatever_the_file(
    format: str, described: tuple[nn.Module, Description], tmp_path: Path
) -> None:
    network, description = described
    path = written(format, described, tmp_path)
    file = open_file(path, fast=True)
    assert "fast" in file.line()
    assert file.description == description
    x = images("MNISTmodel_quant", 3)
    whole, part = file.logits(x), file.logits(x[:2])
    torch.testing.assert_close(whole, ClassLogits(network)(x), atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(part, whole[:2], atol=2e-2, rtol=1e-2)


def test_channels_last_images_are_read_where_they_are_held() -> None:
    """In a process of its own: 48 MB that nobody holds are given back at once, and reading them ends it."""
    script = """
import torch
from torch import nn
from common.deploy.onnx.export import onnx_model
from common.deploy.openvino import OpenVinoLogits, read_model
network = nn.Sequential(nn.Conv2d(3, 2, 3, stride=5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
logits = OpenVinoLogits(read_model(onnx_model(network, (3, 1024, 1024), {}).SerializeToString()))
with torch.inference_mode():
    images = torch.randn(4, 3, 1024, 1024).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits(images), network(images), atol=1e-4, rtol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_signal_is_handled_after_engines_have_gone() -> None:
    """OpenVINO leaves the stack that it let signal handlers run on; in a process that gives memory back at once."""
    script = """
import os, signal, torch
from torch import nn
from common.deploy.onnx.export import onnx_model
from common.deploy.openvino import OpenVinoLogits, read_model
network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
model = onnx_model(network, (3, 8, 8), {}).SerializeToString()
engines = [OpenVinoLogits(read_model(model)) for _ in range(2)]
for engine in engines:
    engine(torch.randn(1, 3, 8, 8))
del engine, engines[0]
del engines
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize("damage", ["xml", "bin", "foreign", "no weights", "pipe"])
def test_a_damaged_or_foreign_ir_is_one_line(
    damage: str, described: tuple[nn.Module, Description], tmp_path: Path
) -> None:
    path = tmp_path / "digits.xml"
    FORMATS["openvino"].write(*described, path)
    weights, text = path.with_suffix(".bin"), path.read_bytes()
    if damage == "xml":
        path.write_bytes(text.replace(b"Relu", b"Rely", 1))
    elif damage == "bin":
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(bytes(content))
    elif damage == "foreign":
        path.write_text("<net/>")
    elif damage == "no weights":
        weights.unlink()
    else:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"damaged|not an OpenVINO file|no such file|a pipe") as error:
        open_file(path)
    assert "\n" not in str(error.value)


def test_weights_of_others_beside_an_ir_are_kept(described: tuple[nn.Module, Description], tmp_path: Path) -> None:
    """Those of this program's own IR are written anew."""
    graph, weights = tmp_path / "digits.xml", tmp_path / "digits.bin"
    for _ in range(2):
        FORMATS["openvino"].write(*described, graph)
    weights.write_bytes(b"of another program")
    for content in (graph.read_bytes(), b"<net/>", None):
        graph.unlink() if content is None else graph.write_bytes(content)
        with pytest.raises(UserError, match=r"digits\.bin: would be overwritten") as refusal:
            FORMATS["openvino"].write(*described, graph)
        assert "\n" not in str(refusal.value)
        assert weights.read_bytes() == b"of another program"


def test_a_missing_engine_is_one_line(
    described: tuple[nn.Module, Description], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, description = described
    packed.save(network, description, tmp_path / "digits.safetensors")
    FORMATS["openvino"].write(network, description, tmp_path / "digits.xml")
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name, fast in (("digits.safetensors", True), ("digits.xml", False)):
        with pytest.raises(UserError, match=r"openvino is not installed.*\[deploy\]"):
            open_file(tmp_path / name, fast=fast)
    with pytest.raises(UserError, match="openvino is not installed"):
        FORMATS["openvino"].write(network, description, tmp_path / "other.xml")
    assert not (tmp_path / "other.xml").exists()


def test_integers_need_no_scale_where_they_are_added() -> None:
    """Residual sums are sums of integers: between the convolutions of "ours" nothing is multiplied by a unit."""
    proto = int8_model(calibrated("resnet20_quant", 4), images("resnet20_quant", 1))
    assert sum(node.output[0].endswith(".real") for node in proto.graph.node) == 1, "before the mean"
    assert isinstance(calibrated("resnet20_quant", 4).before_relu, QuantAct)
