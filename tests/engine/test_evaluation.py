"""What an evaluation says and leaves alone, which epoch is the best, and that the result is that epoch's."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.adaptation import OBJECTIVES, Objective
from common.data.images import ImageSet
from common.data.kinds import RunData
from common.data.tensors import TensorBatches
from common.engine import evaluation, trainer
from common.models import build_model, class_logits
from tests.engine.synthetic import CLASSES, Lab, images


def batches(image_set: ImageSet, size: int) -> TensorBatches:
    return TensorBatches(image_set=image_set, batch_size=size, mean=0.5, std=0.5)


@pytest.fixture(params=OBJECTIVES)
def objective(request: pytest.FixtureRequest) -> Objective:
    """Of a network with BatchNorm, and for two domains with dropout, in the middle of its training."""
    torch.manual_seed(0)
    alone = request.param == "source_only"
    network = build_model(
        "resnet20_quant" if alone else "MNISTmodel_quant", num_classes=4, **({} if alone else {"img_size": 16})
    )
    objective = OBJECTIVES[request.param](network, 4)
    pixels, labels = next(iter(batches(images("statistics", 16), 16)))
    objective(pixels, labels, None if alone else pixels, 0.5)
    return objective


def evaluated(objective: Objective, size: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], Tensor]:
    """The means over ten images of the target in batches of ``size``, and the class and domain logits of each."""
    objective.trained.train()
    logits: list[Tensor] = []
    predict = objective.predict

    def keep(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        found = predict(pixels)
        logits.append(torch.cat([part for part in found if part is not None], 1))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(objective, "predict", keep)
        means, _ = evaluation.measure(objective, batches(images("test", 10), size), "target")
    return means, torch.cat(logits)


def test_an_evaluation_changes_nothing_and_gives_an_image_the_same_logits_in_any_company(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, random = copy.deepcopy(objective.trained.state_dict()), torch.get_rng_state()
    means, alone = evaluated(objective, 1, monkeypatch)
    others, together = evaluated(objective, 7, monkeypatch)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert means == pytest.approx(others, rel=1e-4)
    after = objective.trained.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_means_are_over_images_and_the_target_is_domain_one(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    means, logits = evaluated(objective, 7, monkeypatch)  # the second batch has three
    labels, wanted = images("test", 10).labels, {"prec5": 100.0}
    wanted["loss"] = F.cross_entropy(logits[:, :4], labels).item()
    wanted["prec1"] = 10.0 * sum(
        int(row.argmax()) == label for row, label in zip(logits[:, :4], labels.tolist(), strict=True)
    )
    if logits.shape[1] > 4:
        wanted["prec1_domain"] = 10.0 * sum(int(row[1] > row[0]) for row in logits[:, 4:])
    p = logits[:, :4].softmax(1)
    wanted["entropy"] = (p * p.log()).sum(1).mean().item()  # of all ten images, not of the last batch
    wanted["im"] = wanted["entropy"] - (p.mean(0) * p.mean(0).log()).sum().item()
    assert means.pop("snd") > 0
    assert means == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["dann", "cdan"])
def test_each_domain_has_its_own_result_and_who_takes_all_for_the_target_is_right_there_alone(
    name: str, lab: Lab
) -> None:
    lab.small = True
    lab.run("digits", "--adaptation", name, "--num_epochs", 1)
    objective, data = lab.trainer.objective, lab.trainer.data
    objective.domain_logits = lambda found: torch.tensor([[0.0, 1.0]]).expand(len(found.logits), 2)
    for domain, told_apart in (("source", 0.0), ("target", 100.0)):
        means, counts = evaluation.evaluate(objective, data, domain, lab.trainer.job)
        assert means["prec1_domain"] == told_apart
        logits, labels = (
            torch.cat(parts)
            for parts in zip(*((class_logits(objective.network, x), y) for x, y in data.test[domain]), strict=True)
        )
        assert means["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
        assert counts.tolist() == confusion(objective.network, data.test[domain])


@pytest.mark.parametrize("task", ["single", "digits"])
def test_every_training_pass_and_nothing_else_moves_the_statistics(task: str, lab: Lab) -> None:
    """BatchNorm counts its passes in training mode: evaluations, level counts and pictures must not be among them."""
    words = ["--adaptation", "cdan", "--warmup_epochs", 1] if task == "digits" else []
    lab.run(task, *words, "--num_epochs", 3, "--lr", 0.05, "--select", "last")
    passes = 2 + 2 * 2 * 2 if words else 3 * 2  # two steps an epoch, of one domain or two
    for state in (lab.checkpoint()["state_dict_t"], lab.trainer.network.state_dict()):
        counts = {int(v) for k, v in state.items() if k.endswith("num_batches_tracked") and "discriminator" not in k}
        assert counts == {passes}
    if words:
        heads = lab.checkpoint()["heads"]
        assert {int(v) for k, v in heads.items() if k.endswith("num_batches_tracked")} == {2 * 2}, "both in one batch"


# the best epoch

SCRIPT = {  # accuracies by epoch, each with its own best
    "target": [30.0, 50.0, 50.0, 10.0],
    "source": [60.0, 20.0, 30.0, 40.0],
    "test": [30.0, 50.0, 50.0, 10.0],
    "val": [20.0, 10.0, 30.0, 30.0],
}
CRITERIA = {"entropy": [-2.0, -1.5, -1.0, -1.2], "im": [0.1, 0.3, 0.2, 0.5], "snd": [0.9, 0.3, 0.2, 0.5]}


@pytest.mark.parametrize(
    ("task", "select", "best"),
    [
        ("digits", "target", 1),
        ("digits", "source", 0),
        ("digits", "last", 3),
        ("digits", "entropy", 2),
        ("digits", "im", 3),
        ("digits", "snd", 0),
        ("single", "test", 1),
        ("single", "val", 2),
        ("single", "last", 3),
    ],
)
def test_the_best_epoch_is_the_first_best_of_what_selects_it_and_the_result_is_its_weights(
    task: str, select: str, best: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[dict[str, Tensor]] = []

    def scripted(objective: Objective, data: RunData, name: str, job: Any, epoch: int) -> tuple[dict[str, float], None]:
        if name == next(iter(data.test)):
            weights.append(copy.deepcopy(objective.network.state_dict()))
        criteria = {what: values[epoch] for what, values in CRITERIA.items()} if name == "target" else {}
        return {"loss": 1.0, "prec1": SCRIPT[name][epoch], "prec5": 100.0, **criteria}, None

    monkeypatch.setattr(trainer, "evaluate", scripted)
    lab.test["val"] = images("val", 12)
    summary = lab.run(task, "--select", select, "--num_epochs", 4, "--lr", 0.05)
    tested = "target" if task == "digits" else "test"
    assert (summary["best"]["epoch"], summary["last"]["epoch"]) == (best, 3)
    if task == "digits":
        assert summary["best"]["target"]["prec1"] == SCRIPT["target"][best]
        assert summary["best"]["source"]["prec1"] == SCRIPT["source"][best]
        assert summary["last"]["target"]["prec1"] == SCRIPT["target"][3]
    else:
        assert summary["best"]["test_prec1"] == SCRIPT["test"][best]
        assert summary["last"]["test_prec1"] == SCRIPT["test"][3]
    last, file = lab.checkpoint(), lab.checkpoint("model_best.pt")
    if task == "digits":
        assert (last["tgt_best_prec1"], last["src_best_prec1"]) == (max(SCRIPT["target"]), max(SCRIPT["source"]))
    else:
        assert last["best_prec1"] == SCRIPT["val" if select == "val" else "test"][best]
    assert file["epoch"] == best + 1
    for state in (file["state_dict_t"], lab.trainer.network.state_dict()):
        assert all(torch.equal(value, weights[best][name]) for name, value in state.items())
    for when, epoch in (("best", best), ("last", 3)):
        lab.trainer.network.load_state_dict(weights[epoch])
        assert summary["confusion"][when] == confusion(lab.trainer.network, lab.trainer.data.test[tested])


def confusion(network: Any, test: TensorBatches) -> list[list[int]]:
    """Counts by true and predicted class, image by image."""
    counts = [[0] * len(CLASSES) for _ in CLASSES]
    network.eval()
    with torch.no_grad():
        for pixels, labels in test:
            found = class_logits(network, pixels)
            for row, label in zip(found, labels.tolist(), strict=True):
                counts[label][int(row.argmax())] += 1
    return counts
