"""The fast path: the trained network's logits, with bytes split and 8-bit weights too, whatever the sign of a scale."""

import pytest
import torch

from common.deploy.fast import Int8Layer, fast_network
from common.deploy.graph import ClassLogits
from common.deploy.integer_layers import weight_integers
from common.errors import UserError
from common.models import build_model
from tests.deploy.conftest import calibrated, images


@pytest.mark.parametrize(("bits", "high"), [(4, 60), (8, 255), (8, 1020), (2, 9)])
@torch.no_grad()
def test_the_int8_convolution_is_the_exact_sum(bits: int, high: int) -> None:
    torch.manual_seed(0)
    conv = build_model("resnet20_quant", bitW=bits, abitW=bits).layers[0].conv0
    scale, shift = torch.randn(16).double() * 1e-3, torch.randn(16).double()
    scale[3] = 0
    x = torch.randint(0, high + 1, (2, 16, 9, 9))
    sums = torch.nn.functional.conv2d(x.double(), weight_integers(conv).double(), None, 1, 1)
    expected = sums * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    layer = Int8Layer(conv, scale, shift, high)
    torch.compiler.set_stance("force_eager")  # the splitting alone is compiled here, at some cost
    stored = x.to(torch.uint8 if high < 256 else torch.int16).contiguous(memory_format=torch.channels_last)
    parts = [x & 255, x >> 8] if high > 255 else [stored]
    out = list(layer(stored))
    torch.compiler.set_stance("default")
    ones = out.pop() if layer.kind.endswith("+ones") else None
    assert len(out) == len(parts)
    found = sum(one.double() for one in out)
    if ones is not None:
        found = found[:, :-1] + found[:, -1:] * ones.view(1, -1, 1, 1)
    torch.testing.assert_close(found, expected, atol=1e-3 if bits == 8 else 1e-5, rtol=1e-6)


@torch.no_grad()
def test_logits_are_the_trained_networks() -> None:
    model, x = calibrated("MNISTmodel_quant", 4), images("MNISTmodel_quant")
    fast = fast_network(model, tuple(x.shape))
    torch.testing.assert_close(fast(x), ClassLogits(model)(x), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="made for images"):
        fast(x[:1])


def test_quantizers_that_share_a_convolution_are_refused() -> None:
    with pytest.raises(UserError, match="convolution of its own"):
        fast_network(calibrated("densenet_40_quant", 4), (1, 3, 32, 32))
