"""The integer form: the codes of the fake-quantized network, layer by layer, and integers alone in between."""

import pytest
import torch
from torch import fx, nn

from common.deploy.graph import ClassLogits
from common.deploy.integer.layers import FirstConv, IntegerConv2d, PixelMean, ToFloat
from common.deploy.integer.network import integer_network
from common.deploy.integer.thresholds import Thresholds
from common.errors import UserError
from common.measure.parity import LayerParity, compare_integer, references, total
from common.models import build_model
from common.quantizers import METHODS
from common.quantizers.base import QuantAct
from tests.deploy.conftest import calibrated, images

NETWORKS = ("resnet20_quant", "densenet_40_quant", "MNISTmodel_quant", "resnet50_dann")  # the others are built alike
CASES = [("resnet20_quant", 4), ("MNISTmodel_quant", 4), ("resnet50_dann", 4), ("densenet_40_quant", 8)]
CASES += [(name, bits) for name in ("resnet20_quant", "MNISTmodel_quant") for bits in (1, 3, 8)]


def compared(model: nn.Module, x: torch.Tensor) -> LayerParity:
    rows = compare_integer(model, x, references(model, x))
    assert len(rows) == sum(isinstance(layer, QuantAct) for layer in model.modules())
    return total("integer", rows)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_layers_give_the_same_codes_but_for_float_rounding_on_a_threshold(name: str, bits: int) -> None:
    row = compared(calibrated(name, bits), images(name, 1))
    assert row.different <= row.codes * 1e-4
    assert row.distance <= (2**bits - 1) * 2**-24 * 64
    assert row.unexplained == 0
    assert row.from_float64 <= row.codes * 1e-5, "what float64 shows is no rounding of float32"


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ours"])
@pytest.mark.parametrize(("name", "bits"), [("MNISTmodel_quant", 2), ("MNISTmodel_quant", 5), ("densenet_40_quant", 4)])
def test_other_methods_have_it_where_no_residual_sum_is_quantized(name: str, bits: int, method: str) -> None:
    model, x = calibrated(name, bits, method), images(name, 1)
    row = compared(model, x)
    assert row.codes > 1000
    assert row.different <= row.codes * 1e-4
    assert row.unexplained == 0
    if bits == 2:  # no sum of these images sits on a threshold
        torch.testing.assert_close(integer_network(model)(x), ClassLogits(model)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_published_grid_has_it(bits: int) -> None:
    row = compared(calibrated("MNISTmodel_quant", bits, levels="published"), images("MNISTmodel_quant", 1))
    assert row.different <= row.codes * 1e-4
    assert row.unexplained == 0


def test_the_comparison_notices_a_threshold_off_by_one(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Thresholds.forward
    monkeypatch.setattr(Thresholds, "forward", lambda layer, sums: plain(layer, sums + 1))
    row = compared(small, images("resnet20_quant", 1))
    assert row.different > 100
    assert row.unexplained > 0.9 * row.different


@pytest.mark.parametrize("name", NETWORKS[:3])
def test_only_integers_between_the_first_and_the_last_layer(name: str) -> None:
    network = integer_network(calibrated(name, 4))
    seen: dict[str, torch.dtype] = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            out = super().run_node(node)
            if isinstance(out, torch.Tensor):
                seen[node.name] = out.dtype
            return out

    with torch.no_grad():
        Watch(network).run(images(name, 1))
    nodes = list(network.graph.nodes)
    layers = {node: network.get_submodule(node.target) for node in nodes if node.op == "call_module"}
    first = next(i for i, node in enumerate(nodes) if isinstance(layers.get(node), FirstConv))
    last = next(i for i, node in enumerate(nodes) if isinstance(layers.get(node), PixelMean | ToFloat | nn.Sequential))
    between = nodes[first:last]
    assert len(between) > 6
    assert {seen[node.name] for node in between} == {torch.int32}
    calls = {str(node.target).rsplit(".", 1)[-1] for node in between if node.op != "call_module"}
    assert not any(word in call for call in calls for word in ("div", "erf", "mul", "float", "exp"))
    constants = [tensor.dtype for node in between[1:] if node in layers for tensor in layers[node].buffers()]
    assert not any(dtype.is_floating_point for dtype in constants)


@pytest.mark.parametrize("name", NETWORKS[:3])
@torch.no_grad()
def test_logits_agree_end_to_end(name: str) -> None:
    """At few bits no sum of these images sits on a threshold, so that only the last layer's rounding may differ."""
    model, x = calibrated(name, 2), images(name, 1)
    torch.testing.assert_close(integer_network(model)(x), ClassLogits(model)(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "bits", "high"),
    [
        ("resnet20_quant", 6, 252),
        ("resnet20_quant", 7, 508),
        ("resnet56_quant", 5, 310),
        ("resnet50_dann", 5, 217),
        ("resnet50_dsan", 6, 441),
    ],
)
def test_where_residual_sums_leave_eight_bits(name: str, bits: int, high: int) -> None:
    arguments = {"quant_shortcut": True} if name.startswith("resnet50") else {}
    model = build_model(name, bitW=bits, abitW=bits, **arguments)
    layers = [layer for layer in integer_network(model).modules() if isinstance(layer, IntegerConv2d)]
    assert max(layer.high for layer in layers) == high


@pytest.mark.parametrize(("bits", "dtype"), [(7, torch.int8), (8, torch.int16)])
def test_where_weights_leave_int8(bits: int, dtype: torch.dtype) -> None:
    layers = [
        m for m in integer_network(calibrated("MNISTmodel_quant", bits)).modules() if isinstance(m, IntegerConv2d)
    ]
    assert [layer.weight.dtype for layer in layers] == [dtype]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ours"])
def test_residual_sums_that_are_quantized_as_a_whole_are_refused(method: str) -> None:
    with pytest.raises(UserError, match="adds values of which one is not quantized") as refusal:
        integer_network(calibrated("resnet20_quant", 4, method))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"name": "resnet20_quant"}, "float weights"),
        ({"name": "resnet20_quant", "bitW": 4, "abitW": 32}, "--abitW"),
        ({"name": "MNISTmodel_quant", "method": "lsq", "bitW": 4, "abitW": 4}, "never set"),
        ({"name": "resnet50_dann", "bitW": 4, "abitW": 4}, "--quant_shortcut True"),
    ],
)
def test_what_has_no_integer_form_is_refused_in_one_line(arguments: dict, what: str) -> None:
    with pytest.raises(UserError, match=what) as refusal:
        integer_network(build_model(**arguments))
    assert "\n" not in str(refusal.value)


def test_statistics_of_a_diverged_run_are_refused(small: nn.Module) -> None:
    small.layers[2].bn0.running_mean[0] = float("nan")
    with pytest.raises(UserError, match=r"layers.2.before_relu0.*finite"):
        integer_network(small)
