"""CRP's ADMM: the two invariants, the direct solution, state that only ADMM moves, and odd batches."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from common.admm import CRP, admm_update, prox_frobenius, prox_l1, relation_shift, strength_note
from common.quantizers import make_scheme
from tests.conftest import REPOSITORY

MU, RHO = 0.2, 0.3


def network(bits=4):
    scheme = make_scheme("ours", bitW=bits, abitW=bits)
    torch.manual_seed(0)
    return nn.Sequential(
        scheme.conv(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Sequential(scheme.before_relu()),
        nn.ReLU(),
        scheme.conv(6, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        scheme.before_relu(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )


def sites(model):
    return {"2.0": model[2][0], "6": model[6]}


def make(model, batch_size=8, **options):
    return CRP(sites(model), batch_size=batch_size, **options)


def images(n, seed=0):
    return torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def run(crp, model, x, domain="source"):
    with crp.collect(domain):
        return model(x)


# the updates


def test_one_update_is_the_published_one():
    with np.load(REPOSITORY / "tests" / "golden" / "quantizers.npz") as file:
        golden = {key: torch.from_numpy(file[key]) for key in file.files if key.startswith("crp.")}
    shift = nn.functional.pad(golden["crp.D"], (0, 3, 0, 3))
    z, gamma = admm_update(golden["crp.Gamma0"], shift, mu=0.2, rho=0.3)
    assert torch.allclose(z, golden["crp.opt_Z1"], atol=1e-6)
    assert torch.allclose(gamma, golden["crp.opt_Gamma1"], atol=1e-6)


matrices = st.tuples(st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([0.0, 1e-3, 0.3, 1.0, 30.0]))


def matrix(n, seed, scale):
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(matrices, st.floats(0.01, 3))
@settings(max_examples=12, deadline=None)
def test_proximal_maps_minimise_what_they_should(drawn, threshold):
    v = matrix(*drawn)
    for prox, norm in ((prox_frobenius, torch.linalg.vector_norm), (prox_l1, lambda z: z.abs().sum())):

        def objective(z, norm=norm):
            z = torch.as_tensor(z).reshape(v.shape)
            return (threshold * norm(z) + 0.5 * (z - v).square().sum()).item()

        z = prox(v, threshold)
        found = minimize(objective, v.flatten().numpy(), method="Powell", options={"maxiter": 20})
        assert objective(z) <= found.fun + 1e-9


@pytest.mark.parametrize("prox", [prox_frobenius, prox_l1])
def test_proximal_maps_at_zero_and_below_the_threshold(prox):
    assert torch.equal(prox(torch.zeros(3, 3), 0.5), torch.zeros(3, 3))
    assert torch.equal(prox(torch.zeros(3, 3), 0.0), torch.zeros(3, 3))
    assert torch.equal(prox(torch.full((3, 3), 0.1), 0.5), torch.zeros(3, 3))
    v = torch.randn(3, 3)
    assert torch.allclose(prox(v, 0.0), v)


@given(st.lists(matrices, min_size=1, max_size=8), st.floats(0, 2), st.floats(0.01, 5))
@settings(max_examples=60, deadline=None)
def test_multiplier_stays_in_the_dual_ball_after_every_update(shifts, mu, rho):
    n = shifts[0][0]
    for norm, size in (("fro", torch.linalg.vector_norm), ("l1", lambda g: g.abs().max())):
        gamma = torch.zeros(n, n, dtype=torch.float64)
        for _, seed, scale in shifts:
            shift = matrix(n, seed, scale)
            z, new = admm_update(gamma, shift, mu, rho, norm)
            assert size(new) <= mu * (1 + 1e-9) + 1e-12
            # the update is the projection of G + rho D onto the ball, a second way to the same G
            raised = gamma + rho * shift
            if norm == "l1":
                projected = raised.clamp(-mu, mu)
            else:
                projected = raised * min(1.0, mu / max(size(raised).item(), 1e-300))
            assert torch.allclose(new, projected, atol=1e-9)
            assert torch.allclose(new - gamma, rho * (shift - z), atol=1e-9)
            gamma = new


@pytest.mark.parametrize("norm", ["fro", "l1"])
def test_on_a_fixed_shift_z_becomes_it(norm):
    shift = 0.05 * torch.sign(matrix(4, 0, 1.0)) + matrix(4, 1, 0.01)
    z = gamma = torch.zeros_like(shift)
    for _ in range(500):
        z, gamma = admm_update(gamma, shift, MU, RHO, norm)
    assert torch.allclose(z, shift, atol=1e-9)
    # stationarity of mu ||Z|| + <G, D - Z>: G is mu times a subgradient of the norm at D
    expected = MU * (shift / shift.norm() if norm == "fro" else shift.sign())
    assert torch.allclose(gamma, expected, atol=1e-9)


# the module


@pytest.mark.parametrize("on", ["aligned", "quantized"])
def test_penalty_is_the_augmented_lagrangian(on):
    model = network()
    crp = make(model, mu=MU, rho=RHO, weight=0.7, on=on)
    seen = {}
    for name, site in sites(model).items():
        site.register_forward_hook(lambda site, args, out, name=name: seen.update({name: args[0].detach()}))
    for seed in range(3):
        run(crp, model, images(8, seed))
        expected = 0.0
        for name, site in sites(model).items():
            shift = relation_shift(seen[name], 2.0, site.grid if on == "quantized" else None)
            assert torch.allclose(crp.shifts("source")[name], shift, atol=1e-6)
            key = name.replace(".", "_")
            gap = shift - crp.get_buffer(f"Z_source_{key}")
            expected += (crp.get_buffer(f"G_source_{key}") * gap).sum() + RHO / 2 * gap.square().sum()
            assert crp.mean_abs_shift("source")[name] == pytest.approx(shift.abs().mean().item(), rel=1e-4)
            assert crp.shift_norm("source")[name] == pytest.approx(shift.norm().item(), rel=1e-4)
        assert crp.penalty("source").item() == pytest.approx(0.7 * expected.item(), rel=1e-4)
        crp.update("source")


@pytest.mark.parametrize("norm", ["fro", "l1"])
def test_invariant_holds_while_training(norm):
    model = network()
    crp = make(model, norm=norm, mu=0.01, rho=1.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(6):
        n = 8 if step % 2 else 5
        loss = run(crp, model, images(n, step)).square().sum() + crp.penalty("source")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        crp.update("source")
        for name in ("G_source_2_0", "G_source_6"):
            gamma = crp.get_buffer(name)[:n, :n]
            assert gamma.any()
            assert (gamma.norm() if norm == "fro" else gamma.abs().max()) <= 0.01 + 1e-7


def test_penalty_lowers_the_shift():
    """The sum over entries is felt: gradient descent on it brings the network's D down."""
    model = network()
    crp = make(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    x = images(8)
    norms = []
    for _ in range(15):
        run(crp, model, x)
        norms.append(sum(crp.shift_norm("source").values()).item())
        optimizer.zero_grad()
        crp.penalty("source").backward()
        optimizer.step()
        crp.update("source")
    assert norms[-1] < 0.8 * norms[0]


def test_state_is_moved_by_admm_alone():
    model = network()
    crp = make(model, domains=("source", "target"))
    assert not list(crp.parameters())
    assert len(crp.state_dict()) == 2 * 2 * 2
    assert not any(buffer.any() for buffer in crp.buffers())
    run(crp, model, images(8), "target")
    crp.update("target")
    before = {name: value.clone() for name, value in crp.state_dict().items()}
    assert {name.split("_")[1] for name, value in before.items() if value.any()} == {"target"}
    optimizer = torch.optim.SGD([*model.parameters(), *crp.parameters()], 0.1, weight_decay=0.1)
    loss = run(crp, model, images(8, 1)).sum() + crp.penalty("source") + crp.penalty("target")
    loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in crp.state_dict().items())


def test_network_is_untouched_outside_collect():
    model, twin = network(), network()
    crp = make(model)
    x = images(8)
    collected, plain = run(crp, model, x), twin(x)
    assert torch.equal(collected, plain)
    run(crp, model, x)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all("forward" not in vars(module) for module in model.modules())
    shifts = crp.shifts("source")
    copied(x)
    model(x)
    assert all(torch.equal(shifts[name], shift) for name, shift in crp.shifts("source").items())
    with pytest.raises(ZeroDivisionError), crp.collect("source"):
        raise ZeroDivisionError
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("n", [3, 8, 20])
def test_nothing_happens_in_evaluation(n):
    model = network().eval()
    crp = make(model)
    assert run(crp, model, images(n)).shape == (n, 3)
    assert not crp.shifts("source")
    assert crp.penalty("source") == 0
    crp.update("source")
    assert not any(buffer.any() for buffer in crp.buffers())


def test_smaller_batch_uses_and_moves_the_leading_block():
    model = network()
    crp = make(model)
    run(crp, model, images(8))
    crp.update("source")
    before = {name: value.clone() for name, value in crp.state_dict().items()}
    run(crp, model, images(3, 1))
    assert all(shift.shape == (3, 3) for shift in crp.shifts("source").values())
    crp.update("source")
    for name, value in crp.state_dict().items():
        if name.startswith("G"):
            assert not torch.equal(value[:3, :3], before[name][:3, :3])
        rest = value.clone()
        rest[:3, :3] = before[name][:3, :3]
        assert torch.equal(rest, before[name])


def test_batch_of_one_is_skipped():
    model = network()
    crp = make(model)
    run(crp, model, images(8))
    loss = run(crp, model, images(1)).sum() + crp.penalty("source")
    loss.backward()
    assert crp.penalty("source") == 0
    crp.update("source")
    assert not any(buffer.any() for buffer in crp.buffers())


def test_state_survives_a_restart_of_the_same_batch_size():
    model = network()
    crp = make(model, domains=("source", "target"))
    for domain in crp.domains:
        run(crp, model, images(8), domain)
        crp.update(domain)
    restarted = make(network(), domains=("source", "target"))
    restarted.load_state_dict(copy.deepcopy(crp.state_dict()))
    assert all(torch.equal(crp.state_dict()[name], value) for name, value in restarted.state_dict().items())


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "within another module"])
def test_state_of_another_batch_size_restarts_with_a_line(caplog, inside):
    model = network()
    crp, other = make(model), make(model, batch_size=12)
    run(crp, model, images(8))
    crp.update("source")
    load, saved = crp, other
    if inside:
        load, saved = nn.ModuleDict({"crp": crp}), nn.ModuleDict({"crp": other})
    with caplog.at_level(logging.WARNING):
        load.load_state_dict(saved.state_dict())
    assert not any(buffer.any() for buffer in crp.buffers())
    assert [record.message for record in caplog.records] == [
        "CRP state is of batch size 12, this run's is 8: it restarts at zero"
    ]


def test_no_step_waits_for_the_device():
    """On tensors without data, anything that reads a value or branches on one raises."""
    with FakeTensorMode():
        model = network()
        crp = make(model)
        loss = run(crp, model, torch.randn(8, 3, 5, 5)).sum() + crp.penalty("source")
        loss.backward()
        crp.update("source")
        assert crp.mean_abs_shift("source").keys() == crp.shift_norm("source").keys() == sites(model).keys()


def test_strength_note():
    assert strength_note(28, 1.0) is None
    assert strength_note(32, 1.0) is None
    assert "--crp_weight 0.191 " in strength_note(64, 1.0)
    assert "--crp_weight 8 " in strength_note(14, 2.0)


def test_misuse_is_refused():
    model = network()
    crp = make(model, batch_size=4)
    with pytest.raises(ValueError, match="made for 4 samples"):
        run(crp, model, images(5))
    with pytest.raises(ValueError, match="no domain 'target'"):
        crp.penalty("target")
    with crp.collect("source"):
        model(images(4))
        with pytest.raises(ValueError, match="ran twice"):
            model(images(4))
        with pytest.raises(ValueError, match="inside"), crp.collect("source"):
            pass
    with pytest.raises(ValueError, match="ReLU"):
        CRP({"relu": nn.ReLU()}, batch_size=4)
    with pytest.raises(ValueError, match="distinct"):
        CRP({"a.b": model[6], "a_b": model[2][0]}, batch_size=4)
    with pytest.raises(ValueError, match="sites"):
        CRP({}, batch_size=4)
    for wrong in ({"mu": -1.0}, {"rho": 0.0}, {"weight": -1.0}, {"norm": "l2"}, {"on": "float"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            make(model, **wrong)
