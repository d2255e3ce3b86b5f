"""The distance to a teacher: its closed form, its gradient, its limits, and which images it is over."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from common.adaptation import OBJECTIVES
from common.adaptation.distillation import Distillation, distillation_loss
from common.models import class_logits
from tests.engine.synthetic import CLASSES, Small


def draw(seed: int = 0) -> tuple[Tensor, Tensor]:
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_written_out_and_its_gradient_the_difference_of_the_predictions(
    temperature: float,
) -> None:
    student, teacher = draw()
    loss = distillation_loss(student, teacher, temperature)
    expected = 0.0
    for z, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(v / temperature) for v in row] for row in (z, t))
        q, p = ([v / sum(row) for v in row] for row in (q, p))
        expected += temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True)) / len(student)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    loss.backward()
    difference = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature * difference / len(student))


def test_it_is_zero_for_a_teacher_that_differs_by_a_constant_and_positive_otherwise() -> None:
    student, teacher = draw()
    shift = torch.arange(5.0, dtype=torch.float64)[:, None]
    assert float(distillation_loss(student.detach(), student.detach() + shift, 2.0)) == pytest.approx(0, abs=1e-14)
    assert float(distillation_loss(student.detach(), teacher, 2.0)) > 0


def test_at_a_high_temperature_it_is_the_squared_distance_of_the_centred_logits() -> None:
    student, teacher = draw()
    centred = [one - one.mean(1, keepdim=True) for one in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum() / (2 * student.shape[1] * len(student))
    torch.testing.assert_close(distillation_loss(student, teacher, 1e4), limit, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("both", [True, False])
def test_every_objective_has_it_over_all_images_of_a_step(name: str, both: bool) -> None:
    torch.manual_seed(0)
    network, objective = Small().eval(), OBJECTIVES[name](Small(), len(CLASSES))
    teacher = partial(class_logits, network)
    source, target = torch.randn(2, 6, 3, 16, 16)
    labels, seen = torch.arange(6) % len(CLASSES), target if both else None

    def step(distillation: Distillation | None) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        torch.manual_seed(1)  # dropout of a discriminator
        objective.distillation = distillation
        objective.trained.zero_grad(set_to_none=True)
        losses, _ = objective(source, labels, seen, 0.5)
        losses["Train_loss"].backward()
        return losses, [p.grad for p in objective.trained.parameters()]

    plain, gradients = step(None)
    taught, _ = step(Distillation(teacher, 0.5, 3.0))
    images = [source, target] if both else [source]
    with torch.no_grad():
        own = torch.cat([objective.predict(one)[0] for one in images])
        distance = distillation_loss(own, torch.cat([teacher(one) for one in images]), 3.0)
    torch.testing.assert_close(taught["Distillation_loss"].detach(), distance)
    torch.testing.assert_close(taught["Train_loss"], plain["Train_loss"] + 0.5 * taught["Distillation_loss"])
    assert all(p.grad is None for p in network.parameters())
    idle, same = step(Distillation(teacher, 0.0, 3.0))
    assert torch.equal(idle["Train_loss"], plain["Train_loss"])
    for one, other in zip(gradients, same, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


def test_a_step_towards_the_teacher_alone_needs_no_labels() -> None:
    """On images whose labels say nothing, a student comes to predict what the teacher does."""
    torch.manual_seed(0)
    images = torch.randn(64, 8)
    teacher, student = nn.Linear(8, 3), nn.Linear(8, 3)
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    distillation = Distillation(teacher, 1.0, 4.0)
    for _ in range(200):
        loss = distillation.loss([images], [student(images)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(student(images).argmax(1), teacher(images).argmax(1))
