"""The relation error of a network is the shift that its own quantizers cause, aligned and rounded."""

import pytest
import torch

from common.admm.correlation import relation_shift
from common.measure import relation_error
from common.models import build_model


def test_it_is_the_shift_of_each_quantizer_on_what_it_receives() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20_quant", bitW=2, abitW=2).train()
    images = torch.randn(4, 3, 32, 32)
    measured = relation_error.measure(model, images)
    assert measured is not None
    assert model.training, "left in the mode it was in"
    seen = []
    site = model.before_relu
    site.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(images)
    first = next(layer for layer in measured["layers"] if layer["layer"] == "before_relu")
    for key, grid in (("aligned", None), ("quantized", site.grid)):
        assert first[key] == pytest.approx(float(relation_shift(seen[0], site.act_range, grid).abs().mean()), rel=1e-5)
    assert first["aligned"] != pytest.approx(first["quantized"], rel=1e-2)


def test_a_float_network_has_none() -> None:
    assert relation_error.measure(build_model("resnet20_quant"), torch.randn(2, 3, 32, 32)) is None
