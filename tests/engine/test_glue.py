"""That a run does what its flags say, step by step: whole runs on a few synthetic images against closed forms."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from common.adaptation import OBJECTIVES, Objective
from common.admm.crp import CRP
from common.data.kinds import cyclic
from tests.engine.synthetic import Lab, Small, images, same

ADAPTING = [name for name, one in OBJECTIVES.items() if one.adapts]


@contextmanager
def every_step() -> Iterator[list[list[dict[str, Any]]]]:
    """The optimizer's groups at each of its steps: parameters before and after it, gradients, and settings."""
    steps: list[list[dict[str, Any]]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [dict(group) for group in optimizer.param_groups]
        for group in groups:
            group["before"] = [p.detach().clone() for p in group["params"]]
            group["gradients"] = [None if p.grad is None else p.grad.clone() for p in group["params"]]
        steps.append(groups)

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, seen in zip(optimizer.param_groups, steps[-1], strict=True):
            seen["after"] = [p.detach().clone() for p in group["params"]]

    hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()


def strength(progress: float) -> float:
    return 2 / (1 + math.exp(-10 * progress)) - 1


# the optimizer


@pytest.mark.parametrize(("task", "alpha"), [("single", 0.0), ("digits", 0.0), ("digits", 10.0)])
def test_the_learning_rate_of_every_step_is_the_closed_form(task: str, alpha: float, lab: Lab) -> None:
    words = ["--alpha", alpha] if task == "digits" else []
    lab.small = True
    with every_step() as steps:
        lab.run(task, "--num_epochs", 4, "--lr", 0.03, "--lr_decay_steps", 1, 3, "--lr_gamma", 0.5, *words)
    wanted = [
        0.03 * 0.5**passed / (1 + alpha * (2 * epoch + step) / 8) ** 0.75
        for epoch, passed in enumerate((0, 1, 1, 2))
        for step in (0, 1)
    ]
    assert [step[0]["lr"] for step in steps] == pytest.approx(wanted)
    assert [row["lr"] for row in lab.trainer.job.history()] == pytest.approx(wanted[1::2])


@pytest.mark.parametrize(("weights", "scale"), [("file", 0.3), ("none", 1.0)])
def test_a_pretrained_backbone_learns_more_slowly_and_its_heads_do_not(weights: str, scale: float, lab: Lab) -> None:
    lab.small = True
    path = lab.folder / "backbone.pt"
    torch.save(Small().feature.state_dict(), path)
    words = ["--backbone_weights", path if weights == "file" else "none", "--backbone_lr_scale", 0.3, "--lr", 0.02]
    words += ["--adaptation", "cdan", "--num_epochs", 2]
    with every_step() as steps:
        lab.run("office", *words, "--save_every", 1)
        lab.run("office", *words, "--resume", lab.folder / "job/checkpoint/model_1.pt", job="resumed")
    rates = [{id(p): group["lr"] for group in step for p in group["params"]} for step in steps]
    assert len(steps) == 4 + 2
    for p in lab.trainer.network.feature.parameters():
        assert rates[-1][id(p)] == pytest.approx(0.02 * scale), "also after --resume, which brings all weights"
    for module in (lab.trainer.network.classifier, lab.trainer.objective.heads):
        for p in module.parameters():
            assert rates[-1][id(p)] == pytest.approx(0.02)
    slow = [sum(group["lr"] == pytest.approx(0.02 * 0.3) for group in step) for step in steps]
    assert slow == [int(weights == "file")] * 6


@pytest.mark.parametrize("adaptation", ["dann", "cdan"])
def test_every_step_is_sgd_with_momentum_and_weight_decay_on_all_that_is_trained(adaptation: str, lab: Lab) -> None:
    lab.small = True
    with every_step() as steps:
        words = ["--num_epochs", 3, "--momentum", 0.8, "--weight_decay", 0.05, "--lr", 0.1, "--lr_decay_steps", 1]
        lab.run("digits", "--adaptation", adaptation, *words)
    heads = lab.trainer.objective.heads
    trained = [*lab.trainer.network.parameters(), *([] if heads is None else heads.parameters())]
    velocity: dict[int, torch.Tensor] = {}
    for step in steps:
        assert {id(p) for group in step for p in group["params"]} == {id(p) for p in trained}
        for group in step:
            for p, before, gradient, after in zip(
                *(group[key] for key in ("params", "before", "gradients", "after")), strict=True
            ):
                if gradient is None:
                    assert adaptation == "cdan"
                    assert p in set(lab.trainer.network.discriminator.parameters()), "CDAN has its own"
                    continue
                decayed = gradient + 0.05 * before
                velocity[id(p)] = 0.8 * velocity[id(p)] + decayed if id(p) in velocity else decayed
                torch.testing.assert_close(after, before - group["lr"] * velocity[id(p)], rtol=1e-5, atol=1e-7)
                assert not torch.equal(after, before)


def test_a_run_is_the_textbooks_loop(lab: Lab) -> None:
    """DANN as one would write it down, with a warm-up and every schedule: the same weights at the end."""
    lab.small = True
    words = ["--num_epochs", 4, "--warmup_epochs", 1, "--lr", 0.1, "--lr_decay_steps", 2, "--alpha", 10]
    lab.run("digits", *words, "--lr_gamma", 0.2, "--momentum", 0.9, "--weight_decay", 0.01, "--seed", 3)
    torch.manual_seed(3)
    network = Small()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    source, target = (lab.trainer.data.train[domain] for domain in ("source", "target"))
    for epoch in range(4):
        pairs = zip(cyclic(source, epoch, 2), cyclic(target, epoch, 2), strict=True)
        for step, ((x_s, y_s), (x_t, _)) in enumerate(pairs):
            lr = 0.1 * (0.2 if epoch >= 2 else 1.0) / (1 + 10 * (epoch + step / 2) / 4) ** 0.75
            f_s = network.features(x_s)
            task = F.cross_entropy(network.classify(f_s), y_s)
            parameters = list(network.parameters())
            gradients = torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True)
            if epoch >= 1:
                f_t = network.features(x_t)
                domain = -network.discriminate(f_s).log_softmax(1)[:, 0].mean()
                domain = domain - network.discriminate(f_t).log_softmax(1)[:, 1].mean()
                of_domain = torch.autograd.grad(domain, parameters, allow_unused=True)
            else:
                of_domain = (None,) * len(parameters)
            for (name, p), g, d in zip(network.named_parameters(), gradients, of_domain, strict=True):
                sign = 1.0 if name.startswith("discriminator") else -strength((epoch - 1 + step / 2) / 3)
                parts = [g] if g is not None else []
                parts += [sign * d] if d is not None else []
                p.grad = sum(parts) if parts else None
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    torch.testing.assert_close(network.state_dict(), lab.checkpoint()["state_dict_t"], rtol=1e-4, atol=1e-6)


# what a step minimises


@pytest.mark.parametrize(
    ("name", "words", "factors"),
    [
        ("dann", [], {"Source_domain_loss": 1.0, "Target_domain_loss": 1.0}),
        ("cdan", [], {"Source_domain_loss": 1.0, "Target_domain_loss": 1.0}),
        ("dsan", ["--param", 0.6], {"MMD_loss": 0.6}),
        ("mcc", ["--mcc_weight", 0.6], {"MCC_loss": 0.6}),
        ("source_only", [], {}),
    ],
)
def test_the_sum_is_the_logged_losses_by_their_weights(name: str, words: list, factors: dict, lab: Lab) -> None:
    """At one step an epoch, a row is a step. LMMD's ramp counts from the first epoch behind the warm-up."""
    lab.train = {domain: images(domain, 8) for domain in lab.train}
    words += ["--adaptation", name, "--bitW", 4, "--pretrained", "no", "--num_epochs", 4, "--warmup_epochs", 1]
    lab.run("digits", *words, "--crp_weight", 0.4)
    rows = [row["train"] for row in lab.trainer.job.history()]
    for epoch, row in enumerate(rows):
        losses = {key for key in row if key.endswith("_loss")} - {"Train_loss"}
        adapted = set(factors) if epoch >= 1 else set()
        assert losses == {"Source_class_loss", "Transformation_loss"} | adapted
        ramp = strength((epoch - 1) / 3) if name == "dsan" else 1.0
        total = row["Source_class_loss"] + row["Transformation_loss"]
        total += sum(factors[key] * ramp * row[key] for key in adapted)
        assert row["Train_loss"] == pytest.approx(total, rel=1e-5)
        assert row["Transformation_loss"] != 0
        assert all(row[key] > 0 for key in adapted)


def test_flags_of_an_objective_reach_it(lab: Lab) -> None:
    lab.small = True
    for words, wanted in (
        (["mcc", "--mcc_temperature", 1.5, "--mcc_weight", 0.5], {"mcc_temperature": 1.5, "mcc_weight": 0.5}),
        (["cdan", "--cdan_entropy", "no", "--cdan_hidden", 12], {"cdan_entropy": False, "cdan_hidden": 12}),
        (["dsan", "--param", 0.9, "--lmmd_classes", "all"], {"param": 0.9, "lmmd_classes": "all"}),
    ):
        lab.run("digits", "--num_epochs", 1, "--reset", "--adaptation", *words)
        assert type(lab.trainer.objective) is OBJECTIVES[str(words[0])]
        assert dataclasses.asdict(lab.trainer.objective.options) == wanted


def test_adaptations_progress_counts_from_the_end_of_the_warm_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, float]] = []
    call = Objective.__call__

    def spy(self: Objective, source: Any, labels: Any, target: Any, progress: float) -> Any:
        seen.append((target is not None, progress))
        return call(self, source, labels, target, progress)

    monkeypatch.setattr(Objective, "__call__", spy)
    lab.small = True
    lab.run("digits", "--num_epochs", 4, "--warmup_epochs", 2)
    assert [adapts for adapts, _ in seen] == [False] * 4 + [True] * 4
    assert [progress for _, progress in seen] == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 0.75])


# who sees the target


@pytest.mark.parametrize("words", [["--src_only_flag"], ["--adaptation", "source_only"]])
def test_training_on_the_source_alone_does_not_depend_on_the_target(words: list[str], lab: Lab) -> None:
    lab.run("digits", *words, "--num_epochs", 2, "--lr", 0.1)
    lab.train["target"] = images("others", 16)
    lab.run("digits", *words, "--num_epochs", 2, "--lr", 0.1, job="other")
    assert same(lab.checkpoint()["state_dict_t"], lab.checkpoint(job="other")["state_dict_t"])


@pytest.mark.parametrize("name", ADAPTING)
def test_target_images_count_from_the_end_of_the_warm_up_and_target_labels_never(name: str, lab: Lab) -> None:
    true = lab.train["target"]
    words = ["--adaptation", name, "--num_epochs", 2, "--warmup_epochs", 1, "--save_every", 1, "--lr", 0.1]
    lab.run("digits", *words, "--momentum", 0.9)
    lab.train["target"] = dataclasses.replace(true, labels=true.labels.roll(1))
    lab.run("digits", *words, "--momentum", 0.9, job="labels")
    lab.train["target"] = images("others", 16)
    lab.run("digits", *words, "--momentum", 0.9, job="images")
    first, second = (
        {job: lab.checkpoint(f"model_{epoch}.pt", job)["state_dict_t"] for job in ("job", "labels", "images")}
        for epoch in (1, 2)
    )
    assert same(second["job"], second["labels"])
    assert same(first["job"], first["images"])
    assert not torch.equal(second["job"]["feature.0.weight"], second["images"]["feature.0.weight"])


@pytest.mark.parametrize(
    ("name", "words", "longer"),
    [
        ("dann", [], False),
        ("cdan", [], False),
        ("dsan", [], True),
        ("mcc", [], True),
        ("dann", ["--epoch_length", "max"], True),
        ("dsan", ["--epoch_length", "min"], False),
    ],
)
@pytest.mark.parametrize("sizes", [(8, 24), (24, 8)])
def test_an_epoch_is_as_long_as_the_shorter_or_the_longer_domain(
    name: str, words: list[str], longer: bool, sizes: tuple[int, int], lab: Lab
) -> None:
    lab.small = True
    lab.train = {domain: images(domain, size) for domain, size in zip(("source", "target"), sizes, strict=True)}
    with every_step() as steps:
        lab.run("digits", "--adaptation", name, *words, "--num_epochs", 3, "--warmup_epochs", 1)
    assert len(steps) == sizes[0] // 8 + 2 * (3 if longer else 1), "the warm-up is an epoch of the source"


# relation preservation


def test_the_relations_state_moves_after_each_step_of_the_optimizer(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    update = CRP.update

    def spy(self: CRP, domain: str) -> None:
        before = {name: state.clone() for name, state in self.named_buffers()}
        update(self, domain)
        moved = {name for name, state in self.named_buffers() if not torch.equal(state, before[name])}
        assert moved
        assert all(name.startswith(("Z_" + domain, "G_" + domain)) for name in moved)
        events.append(domain)

    monkeypatch.setattr(CRP, "update", spy)
    hook = register_optimizer_step_post_hook(lambda *_: events.append("step"))
    try:
        lab.run("digits", "--bitW", 4, "--pretrained", "no", "--num_epochs", 2, "--warmup_epochs", 1)
    finally:
        hook.remove()
    assert events == ["step", "source"] * 2 + ["step", "source", "target"] * 2
    state = lab.checkpoint()["crp"]
    assert {name for name, value in state.items() if name.startswith("G_") and value.any()} == {
        f"G_{domain}_feature_{layer}" for domain in ("source", "target") for layer in (2, 7)
    }
