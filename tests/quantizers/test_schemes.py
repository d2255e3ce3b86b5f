"""What a network gets from a Scheme: which modules, where, and which requests are refused."""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.flags import flag, positive, switch
from common.quantizers import METHODS, make_scheme, option_names
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import exact_grid, round_clipped, round_ste
from common.quantizers.scheme import AFTER_RELU, Method

EIGHT = {"ours", "uniform", "dorefa", "bwn", "bwnf", "lsq", "llsq", "apot"}


def test_the_registry_holds_the_eight_methods():
    assert set(METHODS) >= EIGHT
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", METHODS)
def test_32_bits_is_the_float_network(name):
    scheme = make_scheme(name)
    assert type(scheme.conv(3, 4, 3, padding=1, bias=False)) is nn.Conv2d
    assert type(scheme.before_relu()) is type(scheme.after_relu()) is nn.Identity
    torch.manual_seed(0)
    ours = scheme.conv(3, 4, 3)
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    assert repr(ours) == repr(plain)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_quantizing_draws_the_same_initial_weights_as_float(name):
    weights = []
    for bits in (32, 4):
        torch.manual_seed(0)
        weights.append(make_scheme(name, bitW=bits, abitW=bits).conv(3, 4, 3).weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", METHODS)
def test_activations_are_quantized_in_the_methods_own_place_and_only_there(name):
    scheme = make_scheme(name, bitW=4, abitW=4)
    places = {
        "before_relu": scheme.before_relu(),
        "after_relu": scheme.after_relu(),
        "in_conv": scheme.conv(3, 4, 3).input_quantizer,
    }
    quantized = [place for place, module in places.items() if isinstance(module, QuantAct)]
    expected = {"ours": "before_relu", **dict.fromkeys(("lsq", "apot", "centroid"), "in_conv")}.get(name, "after_relu")
    assert quantized == [METHODS[name].placement] == [expected]


@pytest.mark.parametrize("name", METHODS)
def test_the_stem_has_quantized_weights_and_a_float_image(name):
    stem = make_scheme(name, bitW=4, abitW=4).conv(3, 4, 3, image_input=True)
    assert isinstance(stem.weight_quantizer, WeightQuantizer)
    assert type(stem.input_quantizer) is nn.Identity


@pytest.mark.parametrize("name", METHODS)
def test_weight_and_activation_widths_are_independent(name):
    only_weights = make_scheme(name, bitW=4)
    assert isinstance(only_weights.conv(3, 4, 3), QuantConv2d)
    assert type(only_weights.after_relu()) is type(only_weights.before_relu()) is nn.Identity
    only_acts = make_scheme(name, abitW=4)
    conv = only_acts.conv(3, 4, 3)
    assert type(getattr(conv, "weight_quantizer", nn.Identity())) is nn.Identity
    x = torch.rand(1, 3, 5, 5)
    levels = only_acts.after_relu()(only_acts.before_relu()(getattr(conv, "input_quantizer", nn.Identity())(x)))
    assert levels.unique().numel() <= 16


@pytest.mark.parametrize("name", METHODS)
def test_the_convolution_is_that_of_the_quantized_tensors(name):
    conv = make_scheme(name, bitW=4, abitW=4).conv(3, 4, 3, padding=1, stride=2)
    x = torch.rand(2, 3, 7, 7)
    y = conv(x)
    expected = nn.functional.conv2d(conv.input_quantizer(x), conv.weight_quantizer(conv.weight), conv.bias, 2, 1)
    assert torch.equal(y, expected)


DEFINED = {
    "ours": (range(1, 9), range(1, 9)),
    "uniform": (range(1, 9), range(1, 9)),
    "dorefa": (range(1, 9), range(1, 9)),
    "bwn": (range(1, 9), range(1, 9)),
    "bwnf": (range(1, 9), range(1, 9)),
    "lsq": (range(2, 9), range(2, 9)),
    "llsq": (range(2, 9), range(2, 9)),
    "apot": (range(2, 6), range(2, 7)),
    "centroid": (range(1, 9), range(1, 9)),
}


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize(("index", "option"), enumerate(("bitW", "abitW")))
def test_undefined_widths_are_refused_and_the_defined_ones_named(name, index, option):
    defined = DEFINED[name][index]
    for bits in (*range(-1, 18), 31, 33):
        if bits in defined:
            make_scheme(name, **{option: bits})
        else:
            with pytest.raises(UserError) as error:
                make_scheme(name, **{option: bits})
            message = str(error.value)
            assert f"--{option} {bits}" in message
            assert name in message
            assert ", ".join(map(str, defined)) in message


@pytest.mark.parametrize(
    "options",
    [
        {"method": "nonsense"},
        {"method": "ours", "levels": "published", "bitW": 1},
        {"method": "ours", "levels": "published", "abitW": 1},
        {"method": "ours", "levels": "symmetric", "bitW": 1},
        {"method": "lsq", "levels": "symmetric", "bitW": 8},
        {"method": "ours", "levels": "even"},
        {"method": "ours", "grad_approx": "tanh"},
        {"method": "ours", "stage": "second-best"},
        {"method": "ours", "act_range": 0.0},
        {"method": "ours", "act_range": float("nan")},
        {"method": "ours", "lam": -1.0},
        {"method": "ours", "lam2": 0.0},
        *({"method": name, "levels": "published"} for name in sorted(EIGHT - {"ours"})),
    ],
    ids=str,
)
def test_senseless_options_are_refused_in_one_line(options):
    with pytest.raises(UserError, match=r"^--\w+ [^\n]*$"):
        make_scheme(**options)


def test_stage_align_at_32_bits_aligns_without_rounding():
    x = torch.randn(50)
    scheme = make_scheme("ours", stage="align", act_range=3.0)
    torch.testing.assert_close(scheme.before_relu()(x), 3 * (2 * torch.special.ndtr(x) - 1))
    conv = scheme.conv(3, 4, 3)
    u = (conv.weight - conv.weight.mean()) / conv.weight.std()
    torch.testing.assert_close(conv.weight_quantizer(conv.weight), 2 * torch.special.ndtr(u) - 1)
    assert type(make_scheme("uniform", stage="align").after_relu()) is nn.Identity


def test_act_range_scales_ours_and_uniform():
    for name, lowest in (("ours", -3.0), ("uniform", 0.0)):
        scheme = make_scheme(name, abitW=3, act_range=3.0)
        levels = scheme.after_relu()(scheme.before_relu()(torch.linspace(-9, 9, 999)))
        assert levels.aminmax() == (lowest, 3.0)


@pytest.mark.parametrize("name", ["ours", "centroid"])
def test_alignment_never_enters_torch_distributions(name):
    """Its argument checks would wait for the device in every call."""
    scheme = make_scheme(name, bitW=4, abitW=4)
    network = nn.Sequential(scheme.conv(3, 4, 3), scheme.before_relu())
    entered = set()
    sys.setprofile(lambda frame, event, arg: entered.add(frame.f_globals.get("__name__", "")))
    try:
        network(torch.rand(2, 3, 8, 8)).sum().backward()
    finally:
        sys.setprofile(None)
    assert "common.quantizers.alignq" in entered
    assert not any(name.startswith("torch.distributions") for name in entered)


@dataclass(frozen=True)
class HalvesOptions:
    end: float = flag(0.5, positive, "largest level of activations")
    halved: bool = switch(True, "halve the weights' levels, too")


class HalvesWeight(WeightQuantizer):
    def forward(self, w):
        grid = exact_grid(self.bits, 0.5)
        return grid.values(round_ste(w.clamp(-0.5, 0.5) * grid.scale + grid.offset))


class HalvesAct(QuantAct):
    def __init__(self, bits, end):
        super().__init__(bits)
        self.end = end

    def forward(self, x):
        return round_clipped(x, self.bits, self.end)


NINTH = Method(
    name="halves",
    placement=AFTER_RELU,
    weight_bits=range(2, 5),
    act_bits=range(2, 5),
    weight=lambda bits, scheme: HalvesWeight(bits),
    activation=lambda bits, scheme: HalvesAct(bits, scheme.own.end),
    options=HalvesOptions,
)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_own_options_are_called_like_no_other(name):
    known, own = option_names(name)
    assert not set(known) & set(own)
    assert make_scheme(name).own == METHODS[name].options()


def test_a_methods_own_options_reach_its_quantizers_and_are_read_as_if_typed(monkeypatch):
    monkeypatch.setitem(METHODS, "halves", NINTH)
    assert make_scheme("halves").own == HalvesOptions(0.5, True)
    scheme = make_scheme("halves", abitW=2, end="0.25", halved="no")
    assert scheme.own == HalvesOptions(0.25, False)
    assert scheme.after_relu()(torch.ones(3)).tolist() == [0.25] * 3
    for options, message in (
        ({"end": -1}, r"^--method halves: end: expected a number above 0 and up to 1e\+30, not '-1'$"),
        ({"halved": "perhaps"}, "^--method halves: halved: expected true or false"),
        ({"ends": 1}, "^--method halves: unknown option ends; expected some of bitW, .*stage, end, halved$"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make_scheme("halves", **options)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--method ours: unknown option end"):
        make_scheme("ours", end=1)


def test_a_ninth_method_is_one_registry_line(monkeypatch):
    monkeypatch.setitem(METHODS, "halves", NINTH)
    scheme = make_scheme("halves", bitW=3, abitW=2)
    torch.manual_seed(0)
    net = nn.Sequential(
        scheme.conv(3, 8, 3),
        nn.BatchNorm2d(8),
        scheme.before_relu(),
        nn.ReLU(),
        scheme.after_relu(),
        scheme.conv(8, 2, 3),
    )
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(*shape, generator=generator) for shape in ((4, 3, 8, 8), (4, 2, 4, 4)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert net[5].weight_quantizer(net[5].weight).unique().numel() <= 8
    assert net[:5](x).unique().numel() == 4
    with pytest.raises(UserError, match="halves defines 2, 3, 4"):
        make_scheme("halves", bitW=8)
