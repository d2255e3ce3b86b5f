"""Sample relations and their shift: golden values, plain autograd in double precision, memory, and symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.admm import correlation
from common.admm.correlation import align_with_shift, relation_matrix, relation_shift
from common.quantizers.alignq import align, align_activation
from common.quantizers.rounding import exact_grid, published_grid
from tests.conftest import REPOSITORY

GRID = exact_grid(4, 2.0)
SHAPES = [(5, 3, 4, 2), (6, 7), (4,), (3, 5, 1, 1)]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def golden():
    with np.load(REPOSITORY / "tests" / "golden" / "quantizers.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def plain(x, y):
    return relation_matrix(y) - relation_matrix(x)


def test_relations_are_the_published_ones(golden):
    x = golden["in.X"]
    assert torch.allclose(relation_matrix(x), golden["crp.corr_x"], atol=1e-6)
    assert torch.allclose(relation_matrix(align(x, 2.0)), golden["crp.corr_xt"], atol=1e-6)
    assert torch.allclose(relation_shift(x), golden["crp.D"], atol=1e-6)


def test_relations_from_the_formula():
    x = draw(4, 3, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            entry = 0.0
            for f in range(3):
                column = x[:, f].tolist()
                mean = sum(column) / 4
                std = (sum((v - mean) ** 2 for v in column) / 3) ** 0.5
                entry += (column[i] - mean) * (column[j] - mean) / (std + 1e-5) ** 2 / 3
            assert relation_matrix(x)[i, j].item() == pytest.approx(entry, abs=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("chunk", [1, 15, 1 << 17], ids=["columns", "uneven", "whole"])
def test_gradient_is_exact_over_chunk_boundaries(monkeypatch, chunk, memory_format):
    monkeypatch.setattr(correlation, "CPU_CHUNK", chunk)  # the tests run in one thread
    x = draw(3, 2, 2, 2, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: align_with_shift(x, 2.0, None), x)
    assert relation_shift(x).detach().allclose(plain(x, align(x, 2.0)), atol=1e-14)


@pytest.mark.parametrize("on", ["aligned", "quantized"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grid", [GRID, None], ids=["rounded", "unrounded"])
def test_shift_and_gradient_equal_plain_autograd(shape, grid, on):
    # straight-through: the plain version differentiates its own quantizer
    x = draw(*shape, dtype=torch.float64).requires_grad_()
    levels, shift = align_with_shift(x, 2.0, grid, on)
    y = align_activation(x, 2.0, grid)
    expected = plain(x, y if on == "quantized" else align(x, 2.0))
    assert torch.allclose(shift, expected, atol=1e-13)
    upstream = draw(*shift.shape, seed=1, dtype=torch.float64)  # not symmetric
    passed = draw(*shape, seed=2, dtype=torch.float64)
    (got,) = torch.autograd.grad((levels, shift), x, (passed, upstream))
    (want,) = torch.autograd.grad((y, expected), x, (passed, upstream))
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("grid", [None, GRID, published_grid(3)], ids=["none", "exact", "published"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_levels_are_those_of_the_quantizer_to_the_bit(grid, dtype):
    x = draw(6, 4, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    levels, _ = align_with_shift(x, 2.0, grid)
    plain_levels = align_activation(x, 2.0, grid)
    assert torch.equal(levels, plain_levels)
    assert levels.dtype == dtype
    assert levels.stride() == plain_levels.stride()
    (alone,) = torch.autograd.grad(levels.float().square().sum(), x)
    (quantizer,) = torch.autograd.grad(plain_levels.float().square().sum(), x)
    assert torch.equal(alone, quantizer)


def test_single_precision_is_close_to_double():
    x = draw(28, 64, 14, 14).mul(1.3).add(0.2).requires_grad_()
    wide = x.detach().double().requires_grad_()
    upstream = draw(28, 28, seed=1)
    shift, expected = relation_shift(x), plain(wide, align(wide, 2.0))
    shift.backward(upstream)
    expected.backward(upstream.double())
    assert (shift - expected).abs().max() < 1e-6
    assert (x.grad - wide.grad).norm() < 2e-6 * wide.grad.norm()


def test_features_far_from_zero_and_saturated_keep_their_relations():
    x = draw(8, 300)
    x[:, :100] += 1000  # every one saturates: Y is constant
    x[:, 100:200] = 3.0  # constant
    x.requires_grad_()
    shift = relation_shift(x)
    wide = x.detach().double()
    assert (shift - plain(wide, align(wide, 2.0))).abs().max() < 1e-4
    shift.square().sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[:, 100:200].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inside_autocast_is_computed_in_single(dtype):
    x = draw(6, 4, 3, 3, dtype=dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        shift = relation_shift(x)
        shift.square().sum().backward()
        assert relation_matrix(x).dtype == torch.float32
    expected = relation_shift(wide)
    expected.square().sum().backward()
    assert shift.dtype == torch.float32
    assert torch.equal(shift, expected)
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, wide.grad.to(dtype))


@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from(["aligned", "quantized"]))
@settings(max_examples=40, deadline=None)
def test_permuting_the_batch_permutes_the_shift(batch, features, seed, on):
    x = draw(batch, features, seed=seed, dtype=torch.float64)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    shift = align_with_shift(x, 2.0, GRID, on)[1]
    permuted = align_with_shift(x[order], 2.0, GRID, on)[1]
    assert torch.allclose(permuted, shift[order][:, order], atol=1e-12)
    assert torch.equal(shift, shift.T)


def test_order_and_layout_of_features_do_not_matter():
    x = draw(5, 6, 4, 4, dtype=torch.float64)
    shift = relation_shift(x)
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        x.flip(1),
        x.flatten(1),
        x.transpose(2, 3),
        x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        torch.stack([x, x], -1)[..., 0],
    ):
        leaf = other.detach().requires_grad_()
        assert torch.allclose(relation_shift(leaf), shift, atol=1e-13)
        relation_shift(leaf).square().sum().backward()
        reference = other.detach().contiguous().requires_grad_()
        relation_shift(reference).square().sum().backward()
        assert torch.allclose(leaf.grad, reference.grad, atol=1e-13)


def test_backward_keeps_the_input_and_four_numbers_per_feature():
    x = draw(16, 32, 14, 14).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        align_with_shift(x, 2.0, GRID)
    assert sum(t.data_ptr() == x.data_ptr() for t in kept) == 1
    assert sum(t.numel() for t in kept) == x.numel() + 4 * x[0].numel()


@pytest.mark.parametrize("bad", [torch.ones(1, 4), torch.ones(()), torch.ones(3, 0), torch.ones(3, 4).long()])
def test_what_has_no_relations_is_refused(bad):
    for relations in (relation_matrix, relation_shift, lambda x: align_with_shift(x, 2.0, GRID)):
        with pytest.raises(ValueError, match="two samples or more"):
            relations(bad)
