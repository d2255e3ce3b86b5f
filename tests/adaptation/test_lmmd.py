"""LMMD against golden values and a reference of loops, and at the edges: no shared class, identical features."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from common.adaptation.lmmd import lmmd
from tests.conftest import REPOSITORY


def reference(source, target, labels, probs, classes):
    """The formula, entry by entry, in python floats."""
    s, t, probs = source.tolist(), target.tolist(), probs.tolist()
    samples = s + t
    m, c_total = len(samples), len(probs[0])
    squared = [[math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in samples] for p in samples]
    mean = math.fsum(squared[i][j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))

    def kernel(i, j):
        return sum(math.exp(-squared[i][j] / (mean * 2**k / 4)) for k in range(5)) if mean else 5.0

    predicted = {max(range(c_total), key=row.__getitem__) for row in probs}
    chosen = [c for c in range(c_total) if classes == "all" or (c in labels.tolist() and c in predicted)]
    total = 0.0
    for c in chosen:
        count = sum(label == c for label in labels.tolist())
        ws = [float(label == c) / count if count else 0.0 for label in labels.tolist()]
        mass = math.fsum(row[c] for row in probs)
        wt = [row[c] / mass if mass else 0.0 for row in probs]
        for i, a in enumerate(ws):
            for j, b in enumerate(ws):
                total += a * b * kernel(i, j)
            for j, b in enumerate(wt):
                total -= 2 * a * b * kernel(i, len(s) + j)
        for i, a in enumerate(wt):
            for j, b in enumerate(wt):
                total += a * b * kernel(len(s) + i, len(s) + j)
    return total / max(len(chosen), 1)


def batch(n_s, n_t, features, classes, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    source, target = torch.randn(n_s + n_t, features, generator=g, dtype=torch.float64).split([n_s, n_t])
    labels = torch.randint(classes, (n_s,), generator=g)
    probs = (3 * torch.randn(n_t, classes, generator=g, dtype=torch.float64)).softmax(1)
    return source.to(dtype), (target + 0.5).to(dtype), labels, probs.to(dtype)


def test_loss_and_gradients_are_the_published_ones():
    with np.load(REPOSITORY / "tests" / "golden" / "quantizers.npz") as file:
        golden = {key[5:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("lmmd.")}
    source, target = golden["s"].requires_grad_(), golden["t"].requires_grad_()
    loss = lmmd(source, target, golden["s_label"], golden["t_prob"])
    assert torch.allclose(loss, golden["loss"][0], atol=1e-6)
    loss.backward()
    assert torch.allclose(source.grad, golden["ds"], rtol=1e-5, atol=2e-6)
    assert torch.allclose(target.grad, golden["dt"], rtol=1e-5, atol=2e-6)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("classes", ["shared", "all"])
def test_equals_the_formula_for_unequal_batches(classes, n_s, n_t, features, count, seed):
    source, target, labels, probs = batch(n_s, n_t, features, count, seed)
    expected = reference(source, target, labels, probs, classes)
    assert lmmd(source, target, labels, probs, classes).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("classes", ["shared", "all"])
def test_bandwidth_and_probabilities_are_constants_to_the_gradient(classes):
    source, target, labels, probs = batch(4, 5, 3, 3, 0)
    probs.requires_grad_()
    source.requires_grad_()
    everything = torch.cat([source, target]).detach()
    squared = torch.cdist(everything, everything).square()
    mean = squared.sum() / (9 * 8)

    def fixed_bandwidth(source):
        both = torch.cat([source, target])
        distances = (both[:, None] - both[None]).square().sum(-1)
        kernel = sum(torch.exp(-distances / (mean * 2**i / 4)) for i in range(5))
        one_hot = torch.nn.functional.one_hot(labels, 3).double()
        shared = one_hot.any(0) & torch.nn.functional.one_hot(probs.argmax(1), 3).any(0)
        chosen = shared if classes == "shared" else torch.ones(3, dtype=torch.bool)
        w = torch.cat([one_hot / one_hot.sum(0).clamp_min(1), -probs.detach() / probs.detach().sum(0)])[:, chosen]
        return torch.einsum("ic,ij,jc->", w, kernel, w) / chosen.sum()

    loss = lmmd(source, target, labels, probs, classes)
    got, of_probs = torch.autograd.grad(loss, (source, probs), allow_unused=True)
    (want,) = torch.autograd.grad(fixed_bandwidth(source), source)
    assert torch.allclose(got, want, atol=1e-12)
    assert of_probs is None


def test_no_shared_class_is_an_exact_zero_that_back_propagates():
    source, target, _, _ = batch(4, 6, 3, 3, 1, torch.float32)
    source.requires_grad_()
    target.requires_grad_()
    probs = torch.tensor([[0.1, 0.8, 0.1]]).expand(6, 3)
    loss = lmmd(source, target, torch.zeros(4, dtype=torch.long), probs)
    assert loss == 0
    loss.backward()
    for features in (source, target):
        assert not features.grad.any()  # zero, not NaN


@pytest.mark.parametrize("classes", ["shared", "all"])
@pytest.mark.parametrize("spread", [0.0, 1e-22, 1e-12])
def test_identical_features_give_no_nan(classes, spread):
    _, _, labels, probs = batch(4, 5, 3, 3, 2, torch.float32)
    source = (torch.ones(4, 3) + spread * torch.randn(4, 3)).requires_grad_()
    target = torch.ones(5, 3, requires_grad=True)
    if spread == 1e-22:  # so small that squares underflow
        source, target = (source - 1).detach().requires_grad_(), torch.zeros(5, 3, requires_grad=True)
    loss = lmmd(source, target, labels, probs, classes)
    loss.backward()
    assert loss.isfinite()
    assert source.grad.isfinite().all()
    assert target.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_single_precision(dtype):
    source, target, labels, probs = batch(8, 6, 16, 4, 3, torch.float32)
    source, target = source.to(dtype).requires_grad_(), target.to(dtype)
    expected = lmmd(source.float(), target.float(), labels, probs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = lmmd(source, target, labels, probs)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    assert source.grad.dtype == dtype


@pytest.mark.parametrize("classes", ["shared", "all"])
def test_never_waits_for_the_device(classes):
    """On tensors without data, anything that reads a value or branches on one raises."""
    with FakeTensorMode():
        source = torch.randn(4, 3, requires_grad=True)
        lmmd(source, torch.randn(5, 3), torch.randint(3, (4,)), torch.rand(5, 3), classes).backward()
        assert source.grad.shape == (4, 3)


def test_probabilities_that_vanish_in_a_class_are_left_out():
    source, target, labels, _ = batch(4, 5, 3, 3, 4)
    probs = torch.zeros(5, 3, dtype=torch.float64)
    probs[:, 0] = 1
    for classes in ("shared", "all"):
        got = lmmd(source, target, labels, probs, classes).item()
        assert got == pytest.approx(reference(source, target, labels, probs, classes), abs=1e-12)


def test_training_on_it_brings_the_domains_together():
    source, target, labels, _ = batch(20, 24, 4, 2, 5)
    target = (target + 2).requires_grad_()
    probs = torch.full((24, 2), 0.5, dtype=torch.float64)
    optimizer = torch.optim.SGD([target], 5.0)
    first = lmmd(source, target, labels, probs, "all").item()
    for _ in range(60):
        optimizer.zero_grad()
        lmmd(source, target, labels, probs, "all").backward()
        optimizer.step()
    assert lmmd(source, target, labels, probs, "all").item() < 0.5 * first
    assert (target.mean(0) - source.mean(0)).norm() < 2


def test_shapes_that_do_not_fit_are_refused():
    source, target, labels, probs = batch(4, 5, 3, 3, 6)
    for wrong in (
        (source[:, :2], target, labels, probs),
        (source, target, labels[:2], probs),
        (source, target, labels, probs[:2]),
        (source[:0], target, labels[:0], probs),
    ):
        with pytest.raises(ValueError, match=r"expected|empty"):
            lmmd(*wrong)
    with pytest.raises(ValueError, match="shared or all"):
        lmmd(source, target, labels, probs, "some")
