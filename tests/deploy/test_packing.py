"""Codes in bytes, and weights that come back exactly for every method at every width it defines."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.deploy.packed.packing import code_bits, decode, encode, pack, unpack
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import WeightQuantizer

CASES = [(name, bits, "exact") for name, method in METHODS.items() for bits in method.weight_bits]
CASES += [("ours", bits, "published") for bits in range(2, 9)]


def weight_quantizer(name: str, bits: int, levels: str = "exact") -> WeightQuantizer:
    return METHODS[name].weight(bits, make_scheme(name, bitW=bits, levels=levels))


@given(st.integers(1, 9).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, 2**k - 1), max_size=40))))
def test_a_stream_gives_its_codes_back_from_the_fewest_bytes(case: tuple[int, list[int]]) -> None:
    bits, codes = case
    stream = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert len(stream) == -(-len(codes) * bits // 8)
    assert unpack(stream, bits, len(codes)).tolist() == codes


def test_the_stream_is_the_number_whose_digits_are_the_codes() -> None:
    codes = [5, 0, 7, 1, 3]
    number = sum(code << (3 * index) for index, code in enumerate(codes))
    assert bytes(pack(torch.tensor(codes), 3).tolist()) == number.to_bytes(2, "little")


@pytest.mark.parametrize(("name", "bits", "levels"), CASES)
def test_weights_come_back_exactly(name: str, bits: int, levels: str) -> None:
    weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = weight_quantizer(name, bits, levels)
    quantizer.initialise(weight)
    stream, scales = encode(quantizer, weight)
    width = 1 if name.startswith("bwn") else bits + (levels == "published")
    assert len(stream) == -(-weight.numel() * width // 8)
    assert torch.equal(decode(stream, scales, quantizer.levels(), weight.shape), quantizer(weight))


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_of_zeros_comes_back(name: str) -> None:
    weight = torch.zeros(2, 3, 1, 1)
    quantizer = weight_quantizer(name, 4)
    assert torch.equal(decode(*encode(quantizer, weight), quantizer.levels(), weight.shape), quantizer(weight))


def test_apot_leaves_a_code_unused_and_it_is_refused() -> None:
    table = weight_quantizer("apot", 4).levels()
    with pytest.raises(ValueError, match="code 15"):
        decode(pack(torch.tensor([15, 3]), code_bits(table)), torch.ones(1), table, torch.Size((1, 2, 1, 1)))


@pytest.mark.parametrize("name", ["ours", "uniform", "lsq"])
def test_weights_that_are_not_numbers_are_refused(name: str) -> None:
    weight = torch.randn(2, 2, 1, 1)
    quantizer = weight_quantizer(name, 4)
    quantizer.initialise(weight)
    weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not among its levels"):
        encode(quantizer, weight)
