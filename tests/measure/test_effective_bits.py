"""Counting what a convolution really multiplies."""

import math

import pytest
import torch

from common.measure.effective_bits import LayerLevels, distinct, measure
from common.models import build_model
from common.quantizers.learned_scale import scales_from_first_batch


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_ours_has_2_to_the_k_weights_and_half_as_many_inputs_and_zero(bits: int) -> None:
    torch.manual_seed(0)
    model = build_model("MNISTmodel_quant", bitW=bits, abitW=bits).train()
    torch.nn.init.normal_(model.feature[0].weight)  # reaches every level; torch's uniform start does not
    torch.nn.init.normal_(model.feature[5].weight)
    levels = {entry.layer: entry for entry in measure(model, torch.randn(16, 3, 28, 28))}
    assert levels["feature.0"].weight_levels == levels["feature.5"].weight_levels == 2**bits
    assert levels["feature.5"].input_levels == 2 ** (bits - 1) + 1
    assert model.training, "the mode is put back"


def test_a_residual_sum_has_more_levels_than_its_terms() -> None:
    torch.manual_seed(0)
    levels = {
        entry.layer: entry
        for entry in measure(build_model("resnet20_quant", bitW=2, abitW=2), torch.randn(8, 3, 32, 32))
    }
    assert levels["layers.0.conv0"].input_levels <= 3
    assert 3 < levels["layers.1.conv0"].input_levels <= 3 + 4
    assert levels["layers.2.conv0"].input_levels > levels["layers.1.conv0"].input_levels


def test_a_method_that_quantizes_inside_the_convolution_is_counted_behind_its_quantizer() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20_quant", method="lsq", bitW=2, abitW=2)
    model(images := torch.randn(8, 3, 32, 32))
    levels = measure(model, images)
    assert all(entry.input_levels <= 4 for entry in levels[1:])


def test_float_tensors_have_no_count() -> None:
    levels = measure(build_model("resnet20_quant"), torch.randn(4, 3, 32, 32))
    assert {entry.weight_levels for entry in levels} == {None}
    assert levels[1].input_levels is None


def test_bits_are_the_logarithm_and_rounding_errors_are_no_levels() -> None:
    assert LayerLevels("a", 5, None).row() == {
        "layer": "a",
        "weight_levels": 5,
        "input_levels": None,
        "weight_bits": round(math.log2(5), 2),
        "input_bits": None,
    }
    assert distinct(torch.tensor([0.1 + 0.2, 0.3, 0.3 + 1e-8, -1.0, 0.0])) == 3


@pytest.mark.parametrize(("method", "bits", "most"), [("centroid", 4, 16), ("centroid", 2, 4), ("bwnf", 4, 2)])
def test_a_scale_for_every_filter_makes_no_further_levels(method: str, bits: int, most: int) -> None:
    torch.manual_seed(0)
    model = build_model("resnet20_quant", method, bits, bits).eval()
    with scales_from_first_batch(model):
        levels = measure(model, torch.randn(4, 3, 32, 32))
    assert max(entry.weight_levels or 0 for entry in levels) == most
