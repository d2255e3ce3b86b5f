"""Learned scales: where they begin, that they recover, that they are saved, and what a forward pass costs."""

import copy
import io
import math
import pickle
from argparse import Namespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError
from common.machine.acceleration import Acceleration
from common.models import build_model
from common.quantizers import METHODS, make_scheme
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantConv2d
from common.quantizers.learned_scale import BAND, LearnedScale, scales_from_first_batch
from common.quantizers.lsq import LSQAct, LSQWeight
from tests.conftest import refusal

LEARNING = ["lsq", "llsq", "apot"]  # the scales of weights, too
BAD = [1e-8, 1e3, -1.0, 0.0, math.nan, math.inf]


def network(name, bits=4):
    scheme = make_scheme(name, bitW=bits, abitW=bits)
    return torch.nn.Sequential(
        scheme.conv(3, 6, 3, padding=1, bias=False, image_input=True),
        torch.nn.BatchNorm2d(6),
        scheme.before_relu(),
        torch.nn.ReLU(),
        scheme.after_relu(),
        scheme.conv(6, 4, 3, stride=2),
        torch.nn.BatchNorm2d(4),
    )


def scales(net):
    return [module for module in net.modules() if isinstance(module, LearnedScale)]


def train(net, steps, lr=0.02):
    """Losses of a small regression; the same data for the same seed."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.randn(8, 4, 3, 3, generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def saved(net):
    """The state dict as it comes back from a file."""
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_round_trip_is_exact(name):
    torch.manual_seed(0)
    net = network(name)
    train(net, 3)
    fresh = network(name)
    fresh.load_state_dict(saved(net))
    x = torch.randn(4, 3, 8, 8)
    quantizers = [[m for m in n.modules() if isinstance(m, Quantizer)] for n in (net, fresh)]
    assert (
        [q.initialised for q in quantizers[1]] == [q.initialised for q in quantizers[0]] == [True] * len(quantizers[0])
    )
    assert torch.equal(net.eval()(x), fresh.eval()(x))
    assert train(net.train(), 2) == train(fresh.train(), 2)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_an_unused_network_saves_and_loads_as_such(name):
    net = network(name)
    fresh = network(name)
    train(fresh, 1)
    fresh.load_state_dict(saved(net))
    assert [q.initialised for q in scales(fresh)] == [q.initialised for q in scales(net)]
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net(x), fresh(x))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_copies_compute_the_same(name, duplicate):
    net = network(name)
    train(net, 1)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(duplicate(net).eval()(x), net.eval()(x))


@pytest.mark.parametrize("name", METHODS)
def test_methods_learn_only_registered_scalars(name):
    learned = [p for module in network(name).modules() if isinstance(module, Quantizer) for p in module.parameters()]
    assert len(learned) == (3 if name in LEARNING else 1 if name == "centroid" else 0)
    assert all(p.shape == () and p.requires_grad for p in learned)


def test_learning_rate_scales():
    rates = {type(q).__name__: q.scale_lr for name in LEARNING for q in scales(network(name))}
    assert rates == {"LSQWeight": 1, "LSQAct": 1, "LLSQWeight": 1, "LLSQAct": 1, "APoTWeight": 0.2, "APoTAct": 1}


@pytest.mark.parametrize("name", ["lsq", "llsq"])
def test_weight_steps_come_from_the_loaded_float_weights(name):
    float_net = network(name, bits=32)
    with torch.no_grad():
        float_net[5].weight.mul_(30)
    for call_loader in (True, False):
        net = network(name)
        net.load_state_dict(float_net.state_dict(), strict=False)
        assert not any(q.initialised for q in scales(net))
        if call_loader:
            for module in net.modules():
                if isinstance(module, QuantConv2d):
                    module.weight_quantizer.initialise(module.weight)
        else:
            net(torch.randn(2, 3, 8, 8))
        for layer in (0, 5):
            w, quantizer = float_net[layer].weight.detach(), net[layer].weight_quantizer
            expected = 2 * w.abs().mean() / math.sqrt(7) if name == "lsq" else w.abs().max() / 8
            torch.testing.assert_close(quantizer.scale.detach(), expected)
            assert quantizer.initialised


def test_a_saved_step_is_kept_and_not_initialised_again():
    net = network("lsq")
    train(net, 3)
    fresh = network("lsq")
    fresh.load_state_dict(saved(net))
    fresh.eval()(100 * torch.randn(4, 3, 8, 8))
    assert [q.scale.item() for q in scales(fresh)] == [q.scale.item() for q in scales(net)]
    assert [q.reference.item() for q in scales(fresh)] == [q.reference.item() for q in scales(net)]


def test_scales_made_at_another_width_are_taken_anew():
    for name in ("lsq", "llsq", "apot"):
        wide = network(name, bits=5)
        train(wide, 3)
        narrow = network(name, bits=3)
        narrow.load_state_dict(saved(wide))
        assert not any(q.initialised for q in scales(narrow))
        narrow(torch.randn(2, 3, 8, 8))
        assert all(q.width.item() == 3 and q.initialised for q in scales(narrow))
        for before, after in zip(scales(wide), scales(narrow), strict=True):
            assert before.scale.item() != after.scale.item()


def test_activation_steps_come_from_the_first_batch():
    quantizer = LSQAct(4)
    first = torch.rand(4, 3)
    quantizer(first)
    begin = quantizer.scale.item()
    quantizer(50 * first)
    assert quantizer.scale.item() == begin == pytest.approx(2 * first.mean().item() / math.sqrt(15))


@pytest.mark.parametrize("name", LEARNING)
def test_evaluation_takes_no_scale_from_its_data(name):
    net, x = network(name), torch.randn(4, 3, 8, 8)
    with pytest.raises(UserError, match=r"has no value yet.*train the network or calibrate it") as error:
        net.eval()(x)
    assert "\n" not in str(error.value)
    assert not any(q.initialised for q in scales(net))
    with scales_from_first_batch(net):
        expected = net(x)
    assert all(q.initialised for q in scales(net))
    assert torch.equal(net(x), expected)


def test_in_evaluation_zeros_need_no_scale():
    quantizer = LSQAct(4).eval()
    assert torch.equal(quantizer(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert not quantizer.initialised


def test_test_only_of_a_float_file_ends_with_one_line(tmp_path, small_data):
    """Its activation steps are nowhere, and the test data must not set them."""
    source = tmp_path / "float.pt"
    torch.save({"state_dict_t": build_model("resnet20_quant").state_dict()}, source)
    command = [
        "--demo",
        "--data_dir",
        small_data,
        "--source_file",
        source,
        "--test_only",
        "--job_dir",
        tmp_path / "job",
    ]
    line = refusal("single_domain/resnet20", *command, "--method", "lsq", "--bitW", 4, "--abitW", 4)
    assert "has no value yet" in line


def test_a_batch_without_information_does_not_fix_the_step():
    quantizer = LSQAct(4)
    for useless in (torch.zeros(3, 4), torch.full((3, 4), torch.nan)):
        quantizer(useless)
        assert not quantizer.initialised
    quantizer(torch.ones(3, 4))
    assert quantizer.scale.item() == pytest.approx(2 / math.sqrt(15))


def test_processes_agree_on_the_first_batch(monkeypatch):
    """Each process sees its own shard; the step is the mean over them. Here the other one saw three times as much."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.mul_(4))
    quantizer = LSQAct(4)
    quantizer(torch.ones(3, 4))
    assert quantizer.scale.item() == pytest.approx(2 * 2 / math.sqrt(15))


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("seen", [True, False], ids=["after a batch", "from the start"])
def test_a_scale_that_starts_badly_recovers(name, bad, seen):
    torch.manual_seed(0)
    net = network(name)
    if seen:
        train(net, 1)
    with torch.no_grad():
        for quantizer in scales(net):
            quantizer.scale.fill_(bad)
    losses = train(net, 8)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    for quantizer in scales(net):
        assert quantizer.reference / BAND < quantizer.scale < quantizer.reference * BAND


@pytest.mark.parametrize("name", LEARNING)
def test_a_diverging_learning_rate_never_makes_a_nan_of_a_scale(name):
    net = network(name)
    train(net, 3, lr=1e4)
    for quantizer in scales(net):
        x = torch.rand(5, 4)
        assert torch.isfinite(quantizer(x)).all()
        assert torch.isfinite(quantizer.eval()(x)).all()


@pytest.mark.parametrize("bad", BAD)
def test_evaluation_survives_a_bad_scale_without_changing_it(bad):
    quantizer = LSQWeight(4)
    w = torch.randn(3, 4)
    expected = quantizer(w)
    with torch.no_grad():
        quantizer.scale.fill_(bad)
    assert torch.equal(quantizer.eval()(w), expected)
    assert str(quantizer.scale.item()) == str(torch.tensor(bad).item())


@pytest.mark.parametrize("name", LEARNING)
def test_two_forward_passes_before_one_backward_pass(name):
    """As domain adaptation does; a reset in the second pass must not disturb the first one's graph."""
    net = network(name)
    net(torch.randn(2, 3, 8, 8))
    first = net(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for quantizer in scales(net):
            quantizer.scale.fill_(1e-8)
    (first.sum() + net(torch.randn(2, 3, 8, 8)).square().sum()).backward()
    assert all(torch.isfinite(q.scale.grad) for q in scales(net))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_computed_in_float32(name, dtype):
    x = torch.rand(2, 3, 4, 4).to(dtype).requires_grad_()
    quantizer = METHODS[name].activation(4, make_scheme(name))
    y = quantizer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.equal(y, quantizer(x.float()).to(dtype))
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in quantizer.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_trains_under_autocast(name):
    net = network(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(math.isfinite, train(net, 2)))
    assert all(p.dtype == torch.float32 for p in net.parameters())


class NoReadBack(TorchDispatchMode):
    """Fails on whatever would make an accelerator wait: reading a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal")
        assert not any(word in str(func) for word in forbidden), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_waits_for_the_device_once_initialised(name):
    net = network(name)
    train(net, 1)
    x = torch.randn(4, 3, 8, 8)
    with NoReadBack():
        net(x).sum().backward()


@pytest.mark.parametrize("name", METHODS)
def test_a_quantizer_keeps_its_input_and_hardly_more(name):
    """At most one tensor of its size, and of activations' centroids the output, which the layer behind keeps anyway;
    apot one byte per element besides, and the normalised copy of its weights."""
    scheme = make_scheme(name)
    weight, activation = METHODS[name].weight(4, scheme), METHODS[name].activation(4, scheme)
    for quantizer, x in ((activation, torch.rand(4, 8, 16, 16)), (weight, torch.randn(16, 8, 3, 3))):
        x.requires_grad_()
        quantizer(x)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            quantizer(x)
        large = [t.element_size() for t in kept if t.numel() >= x.numel()]
        read_behind = {"apot": [1], "centroid": [4]} if quantizer is activation else {"apot": [4, 1]}
        allowed = [4, *read_behind.get(name, [])]
        assert large in (allowed, [])


@pytest.mark.parametrize("name", METHODS)
def test_a_scaled_loss_trains_like_a_plain_one(name):
    """float16 scales the loss and unscales the gradients; a gradient that is not the loss's must come out of it too."""
    trained = []
    for scaled in (False, True):
        torch.manual_seed(0)
        net = network(name)
        x, y = torch.randn(8, 3, 8, 8), torch.randn(8, 4, 3, 3)
        net(x)
        with torch.no_grad():
            for quantizer in scales(net):
                quantizer.scale.mul_(3)  # far from the best: every rule has something to learn
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        options = Namespace(amp=None, channels_last=False, compile=False)
        faster = Acceleration(options, net, torch.device("cpu"), batch_size=8)
        if scaled:
            faster.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        before = [quantizer.scale.item() for quantizer in scales(net)]
        for _ in range(2):
            with faster.forward(len(x)):
                loss = torch.nn.functional.mse_loss(net(x), y)
            faster.descend(optimizer, loss)
        assert all(one.scale.item() != first for one, first in zip(scales(net), before, strict=True))
        trained.append(net.state_dict())
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, msg=key)
