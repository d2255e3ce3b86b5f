"""A kind of data that says what it is goes through shipped files and tools, though none knows its name."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from common.data.images import ImageSet
from common.data.kinds import DATA, Batching, DataKind, DataOptions, RunData
from common.data.tensors import TensorBatches
from common.deploy.description import Description, describe
from common.deploy.files import Classifier
from common.flags import flag, natural
from common.models import NETWORKS
from tests.tools.entry import type_in
from tools.deployed.flags import of_network_and_data
from tools.deployed.test_sets import test_sets as sets_of

CLASSES = ("ant", "bee")


@dataclass(frozen=True)
class InsectOptions(DataOptions):
    which: int = flag(0, natural, "which insects")


def load(options: InsectOptions, batching: Batching) -> RunData:
    images = torch.full((4, 3, 32, 32), options.which, dtype=torch.uint8)
    insects = ImageSet(images, torch.tensor([0, 1, 0, 1]), CLASSES, "insects")
    batches = TensorBatches(image_set=insects, batch_size=4, mean=0.0, std=1.0)
    return RunData({"source": batches}, {"test": batches}, CLASSES, "insects")


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> Description:
    """Of a network that was trained on it with --which 7."""
    kind = DataKind(
        "insects",
        InsectOptions,
        load,
        domains=False,
        split_seen=lambda options, other: "",
        chooses=("demo", "which"),
        classes=lambda demo: CLASSES,
    )
    monkeypatch.setitem(DATA, "insects", kind)
    monkeypatch.setitem(NETWORKS, "net", replace(NETWORKS["resnet20_quant"], task="insects", data="insects"))
    return describe({"model": "net", "bitW": 4, "abitW": 4, "which": 7, "lr": 0.1}, 2)


def test_a_file_says_its_classes_and_which_images_it_had(description: Description) -> None:
    assert description.classes == CLASSES
    assert description.data == {"which": 7}
    assert Description.from_json(description.to_json()) == description


def test_it_is_tested_on_the_images_of_its_run_unless_others_are_typed(description: Description) -> None:
    file = Classifier(Path("net.safetensors"), "packed", lambda x: x, description, [])
    for typed, expected in (({}, 7), ({"which": 9}, 9)):
        sets, demo = sets_of(file, typed)
        images, _ = next(iter(sets["test"]))
        assert (images * 255).unique().tolist() == pytest.approx([expected])
        assert demo == ""


def test_the_tools_for_shipped_files_take_its_flag(description: Description) -> None:
    assert of_network_and_data()["which"].read("3") == 3
    _, _, errors = type_in("evaluate", "--model", "missing.safetensors", "--which", 3)
    assert "missing.safetensors: there is no such file" in errors
