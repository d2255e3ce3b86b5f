"""No weight tensor or batch, however odd, makes a quantizer invent a NaN; and none swallows one."""

import pytest
import torch

from common.quantizers import METHODS, make_scheme

WEIGHTS = {
    "constant": torch.full((4, 3, 3, 3), 0.37),
    "one element": torch.full((1, 1, 1, 1), -0.2),
    "zeros": torch.zeros(4, 3, 3, 3),
    "huge": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e30,
    "tiny": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1)) * 1e-30,
    "huge constant": torch.full((4, 3, 3, 3), 1e30),
    "tiny constant": torch.full((4, 3, 3, 3), 1e-30),
    "one outlier": torch.cat([torch.full((26,), 1e-3), torch.tensor([1e4])]).reshape(1, 3, 3, 3),
}
# what a ReLU hands on, or a BatchNorm in the case of "ours"
ACTIVATIONS = {
    "constant": torch.full((2, 3, 4, 4), 0.37),
    "one element": torch.full((1, 1, 1, 1), 0.2),
    "zeros": torch.zeros(2, 3, 4, 4),
    "huge": torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e30,
    "tiny": torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 1e-30,
    "infinite": torch.tensor([0.0, 1.0, torch.inf]).reshape(1, 3, 1, 1),
}


def widths(defined):
    return sorted({min(defined), 4, max(defined)})


def two_steps(quantizer, x):
    """Outputs and gradients of two training steps, with an optimizer step on whatever is learned between them."""
    seen = []
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
    for _ in range(2):
        x = x.detach().clone().requires_grad_()
        optimizer.zero_grad()
        y = quantizer(x)
        y.backward(torch.linspace(-1, 1.1, y.numel()).reshape(y.shape))
        seen += [y, x.grad, *(p.grad for p in quantizer.parameters())]
        optimizer.step()
    return seen


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("name", METHODS)
def test_weights_give_finite_outputs_and_gradients(name, case):
    for bits in widths(METHODS[name].weight_bits):
        quantizer = METHODS[name].weight(bits, make_scheme(name))
        for tensor in two_steps(quantizer, WEIGHTS[case]):
            assert torch.isfinite(tensor).all(), f"{bits} bits"


@pytest.mark.parametrize("case", ACTIVATIONS)
@pytest.mark.parametrize("name", METHODS)
def test_activations_give_finite_outputs_and_gradients(name, case):
    for bits in widths(METHODS[name].act_bits):
        quantizer = METHODS[name].activation(bits, make_scheme(name))
        for tensor in two_steps(quantizer, ACTIVATIONS[case]):
            assert torch.isfinite(tensor).all(), f"{bits} bits"


@pytest.mark.parametrize("name", ["uniform", "bwn", "bwnf", "lsq", "llsq", "apot", "centroid"])
def test_zero_weights_stay_zero(name):
    quantizer = METHODS[name].weight(4, make_scheme(name))
    assert (quantizer(torch.zeros(2, 3, 3, 3)) == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_among_the_weights_is_not_swallowed(name):
    w = torch.randn(4, 3, 3, 3)
    quantizer = METHODS[name].weight(4, make_scheme(name))
    quantizer(w)  # also once a learned scale is there
    broken = w.clone()
    broken[1, 2, 0, 0] = torch.nan
    for module in (quantizer, METHODS[name].weight(4, make_scheme(name))):
        assert module(broken)[1, 2, 0, 0].isnan()


@pytest.mark.parametrize("name", METHODS)
def test_a_nan_among_the_activations_stays_where_it_is(name):
    x = torch.rand(2, 3, 4, 4)
    broken = x.clone()
    broken[1, 0, 2, 3] = torch.nan
    seen, fresh = (METHODS[name].activation(4, make_scheme(name)) for _ in range(2))
    seen(x)
    for module in (seen, fresh):
        assert torch.equal(module(broken).isnan(), broken.isnan())
    assert torch.isfinite(fresh(x)).all()


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_batch_passes(name):
    quantizer = METHODS[name].activation(4, make_scheme(name))
    quantizer(torch.rand(2, 3, 4, 4))
    x = torch.rand(0, 3, 4, 4, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
