"""The bound on float32 rounding: every float32 code is within it of float64's, and it is far below a step."""

import pytest
import torch

from common.deploy.graph import trace
from common.measure.parity import references
from common.measure.rounding_error import bounded_positions
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import QuantAct
from tests.deploy.conftest import calibrated, images

CASES = [("resnet20_quant", method, 4) for method in METHODS if method != "bwnf"]
CASES += [("densenet_40_quant", "ours", 8), ("MNISTmodel_quant", "apot", 2)]


@pytest.mark.parametrize(("name", "method", "bits"), CASES)
@torch.no_grad()
def test_float32_stays_within_the_bound_and_the_bound_below_a_step(name: str, method: str, bits: int) -> None:
    model, x = calibrated(name, bits, method), images(name, 1)
    source = trace(model)
    seen: dict[str, torch.Tensor] = {}
    for layer_name, layer in source.named_modules():
        if isinstance(layer, QuantAct):
            layer.register_forward_pre_hook(
                lambda act, inputs, name=layer_name: seen.update({name: act.position(inputs[0])})
            )
    source(x)
    codes = {layer_name: reference.codes for layer_name, reference in references(model, x).items()}
    bounded = bounded_positions(source, x, codes)
    assert bounded.keys() == codes.keys()
    for layer_name, there in bounded.items():
        assert bool(((seen[layer_name] - there.value).abs() <= there.error).all()), layer_name
        assert float(there.error.mean()) < (0.1 if bits == 8 else 0.01), layer_name


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_code_of_an_activation_is_its_position_rounded(name: str, bits: int) -> None:
    act = METHODS[name].activation(bits, make_scheme(name, abitW=bits))
    x = torch.randn(4000, generator=torch.Generator().manual_seed(bits))
    out = act(x.relu() if name != "ours" else x)
    codes = act.codes(out)
    assert codes.unique().tolist() == list(range(2**bits))
    assert torch.equal(codes, act.position(x if name == "ours" else x.relu()).round().int())
    torch.testing.assert_close(act.levels(codes).float(), out)
