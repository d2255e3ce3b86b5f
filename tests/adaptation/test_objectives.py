"""What a step of each objective minimises, against its formula written out for a linear network, and its gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.adaptation import OBJECTIVES, Objective
from common.adaptation.base import Pass
from common.adaptation.cdan import CDAN, CDANOptions, ConditionalDiscriminator, certainty
from common.adaptation.dann import DANN
from common.adaptation.dsan import DSAN, DSANOptions
from common.adaptation.mcc import MCC, MCCOptions, class_confusion
from common.adaptation.source_only import SourceOnly
from common.admm.crp import CRP
from common.quantizers import make_scheme

PIXELS, FEATURES, CLASSES = 12, 5, 3
STRENGTH = 2 / (1 + math.exp(-10 * 0.3)) - 1  # of the reversal and of LMMD's ramp, at progress 0.3
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Linear(nn.Module):
    """(B, 3, 2, 2) to 5 features, 3 classes and 2 domains, each by one linear map in float64."""

    feature_width = FEATURES

    def __init__(self, discriminator: bool = True) -> None:
        super().__init__()
        self.feature, self.classifier = nn.Linear(PIXELS, FEATURES), nn.Linear(FEATURES, CLASSES)
        if discriminator:
            self.discriminator = nn.Linear(FEATURES, 2)
            self.discriminate = self.discriminator.forward
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.feature(x.flatten(1))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)


@pytest.fixture
def network() -> Linear:
    torch.manual_seed(0)
    return Linear()


Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def batch() -> Batch:
    """Source images and labels, and fewer target images."""
    g = torch.Generator().manual_seed(1)
    source, target = torch.randn(11, 3, 2, 2, generator=g, dtype=torch.float64).split([6, 5])
    return source, torch.tensor([0, 1, 2, 0, 1, 1]), target + 0.5


def gradients(loss: Tensor, *modules: nn.Module | None) -> dict[str, Tensor]:
    """Of every parameter by name; 0 where the loss does not depend on it."""
    named = {f"{i}.{n}": p for i, m in enumerate(modules) if m is not None for n, p in m.named_parameters()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def written_out(network: Linear, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class loss of the source as a sum over samples and its graph: (loss, source features, target features, logits)."""
    source, labels, target = batch
    f_s, f_t = network.features(source), network.features(target)
    z = network.classify(f_s)
    loss = sum(z[i].exp().sum().log() - z[i, label] for i, label in enumerate(labels.tolist())) / len(labels)
    return loss, f_s, f_t, network.classify(f_t)


def check(objective: Objective, batch: Batch, value: Tensor, gradient: dict[str, Tensor]) -> None:
    """The objective's sum at progress 0.3, and its gradient by every parameter of network and heads."""
    losses, _ = objective(*batch, progress=0.3)
    torch.testing.assert_close(losses["Train_loss"], value, **EXACT)
    found = gradients(losses["Train_loss"], objective.network, objective.heads)
    for name, wanted in gradient.items():
        torch.testing.assert_close(found[name], wanted, msg=lambda m, name=name: f"{name}: {m}", **EXACT)


def adversarial(network: nn.Module, heads: nn.Module | None, task: Tensor, domain: Tensor, judges: str) -> dict:
    """Gradients of two players: the judges descend on both losses, the rest on task - strength * domain."""
    of_task, of_domain = gradients(task, network, heads), gradients(domain, network, heads)
    return {name: of_task[name] + (1 if name.startswith(judges) else -STRENGTH) * of_domain[name] for name in of_task}


# the formulas


def test_source_only_is_the_class_loss_and_does_not_see_the_target(network: Linear, batch: Batch) -> None:
    value = written_out(network, batch)[0]
    check(SourceOnly(network, CLASSES), batch, value, gradients(value, network))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_without_target_images_is_the_class_loss(name: str, network: Linear, batch: Batch) -> None:
    objective = OBJECTIVES[name](network, CLASSES)
    if objective.heads is not None:
        objective.heads.double()
    value = written_out(network, batch)[0]
    check(objective, (*batch[:2], None), value, gradients(value, network, objective.heads))


def test_dann_is_the_closed_form_of_ganin(network: Linear, batch: Batch) -> None:
    """No automatic differentiation: softmax minus one-hot, pulled back by hand; the features' share is reversed."""
    (source, labels, target), p = batch, dict(network.named_parameters())
    x_s, x_t = source.flatten(1), target.flatten(1)
    f_s, f_t = (x @ p["feature.weight"].T + p["feature.bias"] for x in (x_s, x_t))
    value, pull = 0.0, {}
    for name, features, layer, truth in (
        ("class", f_s, "classifier", labels),
        ("source", f_s, "discriminator", torch.zeros(6, dtype=torch.int64)),
        ("target", f_t, "discriminator", torch.ones(5, dtype=torch.int64)),
    ):
        z = features @ p[f"{layer}.weight"].T + p[f"{layer}.bias"]
        q = z.exp() / z.exp().sum(1, keepdim=True)
        value = value - q[torch.arange(len(q)), truth].log().mean()
        pull[name] = (q - torch.eye(q.shape[1], dtype=q.dtype)[truth]) / len(q)
    at_source = pull["class"] @ p["classifier.weight"] - STRENGTH * pull["source"] @ p["discriminator.weight"]
    at_target = -STRENGTH * pull["target"] @ p["discriminator.weight"]
    gradient = {
        "feature.weight": at_source.T @ x_s + at_target.T @ x_t,
        "feature.bias": at_source.sum(0) + at_target.sum(0),
        "classifier.weight": pull["class"].T @ f_s,
        "classifier.bias": pull["class"].sum(0),
        "discriminator.weight": pull["source"].T @ f_s + pull["target"].T @ f_t,
        "discriminator.bias": pull["source"].sum(0) + pull["target"].sum(0),
    }
    check(DANN(network, CLASSES), batch, value, {f"0.{name}": wanted for name, wanted in gradient.items()})


def test_dann_brings_a_discriminator_for_a_network_without_one(batch: Batch) -> None:
    network = Linear(discriminator=False)
    objective = DANN(network, CLASSES)
    judge = objective.heads.double()
    task, f_s, f_t, _ = written_out(network, batch)
    z_s, z_t = judge(f_s), judge(f_t)
    domain = -z_s.log_softmax(1)[:, 0].mean() - z_t.log_softmax(1)[:, 1].mean()
    check(objective, batch, task + domain, adversarial(network, judge, task, domain, judges="1."))


def slow_lmmd(source: Tensor, target: Tensor, labels: list[int], probs: list[list[float]]) -> Tensor:
    """Sum over classes that both domains have, entry by entry (Zhu et al., equation 9); bandwidths are constants."""
    samples = [*source, *target]
    m, n_s = len(samples), len(source)
    squared = [[((a - b) ** 2).sum() for b in samples] for a in samples]
    mean = sum(squared[i][j].item() for i in range(m) for j in range(m)) / (m * (m - 1))
    kernel = [[sum(torch.exp(-d / (mean * 2.0**k / 4)) for k in range(5)) for d in row] for row in squared]
    predicted = {max(range(CLASSES), key=row.__getitem__) for row in probs}
    shared = [c for c in range(CLASSES) if c in labels and c in predicted]
    total = torch.zeros((), dtype=torch.float64)
    for c in shared:
        weights = [(label == c) / labels.count(c) for label in labels]
        weights += [-row[c] / sum(other[c] for other in probs) for row in probs]
        assert len(weights) == n_s + len(probs)
        total = total + sum(weights[i] * weights[j] * kernel[i][j] for i in range(m) for j in range(m))
    return total / len(shared)


def test_dsan_is_the_class_loss_and_param_times_the_ramp_times_lmmd(network: Linear, batch: Batch) -> None:
    task, f_s, f_t, z_t = written_out(network, batch)
    value = task + 0.7 * STRENGTH * slow_lmmd(f_s, f_t, batch[1].tolist(), z_t.softmax(1).tolist())
    check(DSAN(network, CLASSES, DSANOptions(param=0.7)), batch, value, gradients(value, network))


def slow_certainty(probabilities: list[list[float]]) -> list[float]:
    raw = [1 + math.exp(sum(p * math.log(p) for p in row)) for row in probabilities]
    return [len(raw) * weight / sum(raw) for weight in raw]


def slow_confusion(logits: Tensor, temperature: float) -> Tensor:
    """Jin et al., section 3, entry by entry; the weights are constants."""
    y = [[e / sum(row) for e in row] for row in ([torch.exp(z / temperature) for z in row] for row in logits)]
    w = slow_certainty([[p.item() for p in row] for row in y])
    classes = range(logits.shape[1])
    total = torch.zeros((), dtype=logits.dtype)
    for j in classes:
        row = [sum(w[i] * y[i][j] * y[i][k] for i in range(len(y))) for k in classes]
        total = total + sum(row[k] for k in classes if k != j) / sum(row)
    return total / len(classes)


def test_mcc_is_the_class_loss_and_the_targets_class_confusion(network: Linear, batch: Batch) -> None:
    task, _, _, z_t = written_out(network, batch)
    value = task + 0.8 * slow_confusion(z_t, temperature=1.7)
    options = MCCOptions(mcc_weight=0.8, mcc_temperature=1.7)
    check(MCC(network, CLASSES, options), batch, value, gradients(value, network))


def written_cdan(network: Linear, heads: nn.Module, batch: Batch, entropy: bool) -> tuple[Tensor, Tensor]:
    """Class loss and domain loss, the reversal left out; predictions and weights are python numbers."""
    task, f_s, f_t, z_t = written_out(network, batch)
    g_s, g_t = (z.softmax(1).tolist() for z in (network.classify(f_s), z_t))
    pairs = [
        (f, g) for features, predictions in ((f_s, g_s), (f_t, g_t)) for f, g in zip(features, predictions, strict=True)
    ]
    joint = torch.stack([torch.stack([p * value for p in g for value in f]) for f, g in pairs])
    z = heads.layers(joint)
    domain = torch.zeros((), dtype=torch.float64)
    for truth, first, predictions in ((0, 0, g_s), (1, len(g_s), g_t)):
        weights = slow_certainty(predictions) if entropy else [1.0] * len(predictions)
        for i, weight in enumerate(weights):
            domain = domain - weight * z[first + i].log_softmax(0)[truth] / len(weights)
    return task, domain


@pytest.mark.parametrize("entropy", [True, False])
def test_cdan_is_the_game_of_long_on_the_products_of_features_and_predictions(
    entropy: bool, network: Linear, batch: Batch
) -> None:
    objective = CDAN(network, CLASSES, CDANOptions(cdan_hidden=7, cdan_entropy=entropy))
    objective.heads.double()
    task, domain = written_cdan(network, objective.heads, batch, entropy)
    wanted = adversarial(network, objective.heads, task, domain, judges="1.")
    check(objective, batch, task + domain, wanted)


def test_cdans_discriminator_sees_how_far_the_domains_means_lie_apart() -> None:
    """Normalised apart, two domains that differ by a shift alone would be the same to it: 2 ln 2 at best."""
    torch.manual_seed(0)
    features, logits, labels = torch.randn(16, FEATURES), torch.zeros(16, CLASSES), torch.zeros(16, dtype=torch.int64)
    objective = CDAN(Linear(), CLASSES, CDANOptions(cdan_hidden=8))
    optimizer = torch.optim.SGD(objective.heads.parameters(), 0.5)
    for _ in range(40):
        losses = objective.losses(Pass(features, logits), labels, Pass(features + 1, logits), progress=0.0)
        loss = losses["Source_domain_loss"] + losses["Target_domain_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(2)


def test_a_large_multilinear_map_is_randomised_and_keeps_inner_products() -> None:
    """<T(f, g), T(f', g')> is about <f, f'> <g, g'>; the projections are drawn once, alike everywhere, and not trained."""
    g = torch.Generator().manual_seed(0)
    features, predictions = torch.randn(6, 512, generator=g), torch.randn(6, 10, generator=g).softmax(1)
    seen, states = {}, []
    for classes in (10, 10, 3):  # 5120 products, and 1536
        heads = ConditionalDiscriminator(512, classes, hidden=4)
        heads.layers[0].register_forward_pre_hook(lambda _, args, classes=classes: seen.update({classes: args[0]}))
        heads(features, predictions[:, :classes])
        assert {name.split(".")[0] for name, _ in heads.named_parameters()} == {"layers"}
        states.append(heads.state_dict())
    exact = (features @ features.T) * (predictions @ predictions.T)
    assert seen[10].shape == (6, 1024)
    assert (seen[10] @ seen[10].T - exact).norm() < 0.2 * exact.norm()
    assert seen[3].shape == (6, 1536)
    for name in ("feature_projection", "class_projection"):
        assert torch.equal(states[0][name], states[1][name])
        assert name not in states[2]


# relation preservation, and what an evaluation asks for


class Aligned(Linear):
    """As ``Linear``, its features aligned and rounded to 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.site = make_scheme("ours", bitW=32, abitW=4).before_relu()

    def features(self, x: Tensor) -> Tensor:
        return self.site(super().features(x))


def written_penalty(x: Tensor, z: Tensor, multiplier: Tensor, rho: float) -> Tensor:
    """<G, D - Z> + rho/2 ||D - Z||^2 over the leading block, of features before their alignment."""

    def relations(values: Tensor) -> Tensor:
        standard = (values - values.mean(0)) / (values.std(0) + 1e-5)
        return standard @ standard.T / FEATURES

    n = len(x)
    gap = relations(2 * torch.erf(x / math.sqrt(2))) - relations(x) - z[:n, :n]
    return sum(multiplier[i, j] * gap[i, j] + rho / 2 * gap[i, j] ** 2 for i in range(n) for j in range(n))


@pytest.mark.parametrize("adapts", [True, False])
def test_relation_preservation_adds_its_penalty_for_each_domain_that_is_seen(adapts: bool, batch: Batch) -> None:
    torch.manual_seed(0)
    network = Aligned()
    crp = CRP({"site": network.site}, batch_size=6, rho=0.4, weight=1.3, domains=("source", "target")).double()
    for state in crp.buffers():
        state.normal_()
    z_s, g_s, z_t, g_t = crp.buffers()
    x_s, x_t = (Linear.features(network, images) for images in (batch[0], batch[2]))
    value = written_out(network, batch)[0] + 1.3 * written_penalty(x_s, z_s, g_s, rho=0.4)
    value = value + 1.3 * written_penalty(x_t, z_t, g_t, rho=0.4) if adapts else value
    objective = MCC(network, CLASSES, MCCOptions(mcc_weight=0.0), crp)
    check(objective, batch if adapts else (*batch[:2], None), value, gradients(value, network))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_prediction_is_the_classifiers_and_the_discriminators(name: str, network: Linear, batch: Batch) -> None:
    objective = OBJECTIVES[name](network, CLASSES)
    if objective.heads is not None:
        objective.heads.double().eval()
    logits, domain_logits = objective.predict(batch[0])
    f = network.features(batch[0])
    assert torch.equal(logits, network.classify(f))
    if name == "dann":
        assert torch.equal(domain_logits, network.discriminate(f))
    elif name == "cdan":
        assert torch.equal(domain_logits, objective.heads(f, network.classify(f).softmax(1)))
    else:
        assert domain_logits is None


# class confusion and certainty


def logits_of(seed: int, samples: int, classes: int, scale: float) -> Tensor:
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


random_logits = st.builds(
    logits_of, st.integers(0, 2**31), st.integers(1, 8), st.integers(2, 6), st.sampled_from([0.1, 1.0, 10.0])
)


@given(random_logits, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_class_confusion_is_a_share_and_does_not_depend_on_names_or_order(logits: Tensor, seed: int) -> None:
    confusion = class_confusion(logits)
    assert 0 <= confusion < 1
    g = torch.Generator().manual_seed(seed)
    samples, classes = (torch.randperm(n, generator=g) for n in logits.shape)
    torch.testing.assert_close(class_confusion(logits[samples][:, classes]), confusion, **EXACT)
    torch.testing.assert_close(class_confusion(torch.cat([logits, logits])), confusion, **EXACT)


@pytest.mark.parametrize("classes", [2, 10])
def test_class_confusion_at_its_ends(classes: int) -> None:
    assert class_confusion(200 * torch.eye(classes)) == pytest.approx(0, abs=1e-6)
    assert class_confusion(torch.zeros(4, classes)) == pytest.approx(1 - 1 / classes)


def test_class_confusion_of_impossible_classes_is_no_nan() -> None:
    logits = torch.zeros(4, 3)
    logits[:, 0] = 1000.0
    logits.requires_grad_()
    confusion = class_confusion(logits)
    confusion.backward()
    assert confusion == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_class_confusion_is_computed_in_single_precision_under_autocast() -> None:
    logits = logits_of(0, 8, 5, 3.0).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        confusion = class_confusion(logits)
    assert confusion.dtype == torch.float32
    assert torch.equal(confusion, class_confusion(logits.float()))


@given(random_logits)
@settings(max_examples=60, deadline=None)
def test_certainty_has_mean_one_and_ranks_by_entropy(logits: Tensor) -> None:
    probabilities = logits.softmax(1)
    weights = certainty(probabilities)
    torch.testing.assert_close(weights, weights.new_tensor(slow_certainty(probabilities.tolist())))
    assert weights.mean().item() == pytest.approx(1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    assert (weights[entropy.argsort()].diff() <= 1e-12).all()
