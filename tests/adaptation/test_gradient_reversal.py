"""Gradient reversal: only what lies before it sees the reversed, scaled gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.adaptation.gradient_reversal import reversal_strength, reverse_gradient
from common.adaptation.lmmd import lmmd_weight


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)])
def test_only_the_gradient_of_the_features_is_reversed_and_scaled(alpha):
    torch.manual_seed(0)
    extractor, discriminator = torch.nn.Linear(4, 5), torch.nn.Linear(5, 2)
    x, labels = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])

    def gradients(between):
        logits = discriminator(between(extractor(x)))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        parameters = [*extractor.parameters(), *discriminator.parameters()]
        return logits, torch.autograd.grad(loss, parameters)

    plain_logits, plain = gradients(lambda f: f)
    logits, reversed_ = gradients(lambda f: reverse_gradient(f, alpha))
    assert torch.equal(logits, plain_logits)
    for got, want in zip(reversed_[:2], plain[:2], strict=True):
        assert got.dtype == want.dtype
        assert torch.allclose(got, -float(alpha) * want)
    for got, want in zip(reversed_[2:], plain[2:], strict=True):
        assert torch.equal(got, want)


@given(st.floats(0, 1))
def test_strength_follows_ganin(progress):
    assert reversal_strength(progress) == pytest.approx(math.tanh(5 * progress), abs=1e-12)
    assert lmmd_weight(progress) == reversal_strength(progress)


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_progress_beyond_training_is_refused(progress):
    for ramp in (reversal_strength, lmmd_weight):
        with pytest.raises(ValueError, match="progress"):
            ramp(progress)
