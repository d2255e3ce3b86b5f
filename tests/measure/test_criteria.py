"""Criteria without labels: against loops over single predictions, and what they are at the ends of their ranges."""

import math

import pytest
import torch

from common.measure import criteria
from common.measure.criteria import CRITERIA, certainty, criteria_of, mutual_information, neighbourhood_density


def entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def predictions(count: int = 7, classes: int = 4, sharp: float = 2.0) -> torch.Tensor:
    draws = torch.randn(count, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (sharp * draws).softmax(1)


def test_each_is_its_formula() -> None:
    p = predictions()
    rows = p.tolist()
    mean = sum(map(entropy, rows)) / len(rows)
    assert float(certainty(p)) == pytest.approx(-mean)
    assert float(mutual_information(p)) == pytest.approx(entropy(p.mean(0).tolist()) - mean)
    total = 0.0
    for i, one in enumerate(rows):
        similar = []
        for j, other in enumerate(rows):
            if i != j:
                cosine = sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
                similar.append(math.exp(cosine / 0.05))
        total += entropy([value / sum(similar) for value in similar])
    assert float(neighbourhood_density(p)) == pytest.approx(total / len(rows))


def test_the_ends_of_their_ranges() -> None:
    even, certain = torch.full((6, 3), 1 / 3), torch.eye(3).repeat(2, 1)
    assert float(certainty(even)) == pytest.approx(-math.log(3))
    assert float(certainty(certain)) == 0
    assert float(mutual_information(certain)) == pytest.approx(math.log(3)), "certain, and of every class alike"
    assert float(mutual_information(certain[:1].repeat(6, 1))) == pytest.approx(0, abs=1e-6), "all of one class"
    assert float(neighbourhood_density(even)) == pytest.approx(math.log(5)), "all alike: one dense neighbourhood"


@pytest.mark.parametrize("name", CRITERIA)
def test_order_of_images_and_of_classes_does_not_matter(name: str) -> None:
    p = predictions(40)
    for other in (p.flip(0), p[:, [2, 0, 3, 1]]):
        assert float(CRITERIA[name](other)) == pytest.approx(float(CRITERIA[name](p)))


def test_rows_at_a_time_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    p = predictions(50)
    whole = float(neighbourhood_density(p))
    monkeypatch.setattr(criteria, "ROWS", 7)
    assert float(neighbourhood_density(p)) == pytest.approx(whole)
    monkeypatch.setattr(criteria, "MOST_NEIGHBOURS", 25)
    assert float(neighbourhood_density(p)) == pytest.approx(float(neighbourhood_density(p[::2])))


def test_logits_become_predictions() -> None:
    logits = torch.randn(9, 5)
    assert criteria_of(logits)["entropy"] == pytest.approx(float(certainty(logits.softmax(1))))
    assert set(criteria_of(logits)) == {"entropy", "im", "snd"}
