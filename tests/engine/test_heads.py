"""What an objective trains beside the network, a discriminator: saved, resumed, evaluated and shared as the network is."""

from typing import Any

import pytest
import torch

from common.adaptation import OBJECTIVES
from common.errors import UserError
from tests.engine.synthetic import Lab, same
from tests.machine import test_distributed

CDAN = ["--adaptation", "cdan", "--cdan_hidden", 16, "--lr", 0.05, "--momentum", 0.9]

pair = test_distributed.pair


def test_heads_are_saved_as_they_are_and_a_resumed_run_ends_with_the_same(lab: Lab) -> None:
    lab.run("digits", *CDAN, "--num_epochs", 3, "--save_every", 1)
    whole = lab.checkpoint()
    assert same(lab.trainer.objective.heads.state_dict(), whole["heads"])
    first = lab.checkpoint("model_1.pt")
    assert not any(
        torch.equal(first["heads"][name], whole["heads"][name]) for name in first["heads"] if "layers" in name
    )
    lab.run("digits", *CDAN, "--num_epochs", 3, "--resume", lab.folder / "job/checkpoint/model_1.pt", job="resumed")
    resumed = lab.checkpoint(job="resumed")
    assert same(resumed["state_dict_t"], whole["state_dict_t"])
    assert same(resumed["heads"], whole["heads"])


def test_a_run_with_heads_of_another_size_is_not_resumed(lab: Lab) -> None:
    lab.run("digits", *CDAN, "--num_epochs", 1)
    with pytest.raises(UserError, match="it was made with --cdan_hidden 16, not 32"):
        lab.run("digits", *CDAN, "--cdan_hidden", 32, "--num_epochs", 2, "--resume")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_test_only_says_what_the_best_epoch_said_of_domains_too(name: str, lab: Lab) -> None:
    words = ["--adaptation", name, "--lr", 0.05]
    lab.run("digits", *words, "--num_epochs", 3, "--select", "source")
    best = lab.trainer.best
    result = lab.run("digits", *words, "--test_only")
    assert {domain: result[domain] for domain in ("source", "target")} == {d: best[d] for d in ("source", "target")}


@pytest.mark.parametrize("domain", [0, 1])
def test_test_only_asks_the_discriminator_of_the_file(domain: int, lab: Lab) -> None:
    lab.run("digits", *CDAN, "--num_epochs", 1)
    content = lab.checkpoint("model_best.pt")
    content["heads"]["layers.6.bias"][domain] = 1000.0
    torch.save(content, lab.folder / "job/checkpoint/model_best.pt")
    result = lab.run("digits", *CDAN, "--test_only")
    assert [result[name]["prec1_domain"] for name in ("source", "target")] == [100.0 * (domain == n) for n in (0, 1)]


def test_a_quantized_run_goes_on_with_the_discriminator_of_its_float_source(lab: Lab) -> None:
    lab.run("digits", *CDAN, "--num_epochs", 1)
    words = ["--bitW", 4, "--source_file", lab.folder / "job/checkpoint/last.pt", "--num_epochs", 1]
    lab.run("digits", *CDAN, *words, "--lr", 1e-30, "--weight_decay", 0, job="quantized")
    started, source = lab.checkpoint(job="quantized")["heads"], lab.checkpoint()["heads"]
    assert all(torch.equal(started[name], source[name]) for name in started if name.endswith("weight"))
    assert "left as initialised: the discriminator" not in (lab.folder / "quantized/logger.log").read_text()
    lab.run("digits", *CDAN, *words, "--cdan_hidden", 8, job="smaller")
    assert (
        "left as initialised: the discriminator of --adaptation cdan" in (lab.folder / "smaller/logger.log").read_text()
    )


@pytest.mark.parametrize("name", [name for name, one in OBJECTIVES.items() if one.adapts])
@pytest.mark.parametrize("warmup", [0, 1])
def test_two_processes_train_every_objective_to_the_same_network_and_heads(
    name: str, warmup: int, pair: Any, lab: Lab
) -> None:
    """The network has a discriminator, which is not every objective's: its parameters may get no gradient."""
    lab.small = True

    def trained() -> dict[str, torch.Tensor]:
        words = ["--adaptation", name, "--num_epochs", 2, "--warmup_epochs", warmup, "--select", "last"]
        lab.run("digits", *words, "--lr", 0.1)
        return lab.trainer.objective.trained.state_dict()

    (_, text, first), (_, other, second) = pair(trained)
    assert first is not None, text
    assert second is not None, other
    assert same(first, second)
