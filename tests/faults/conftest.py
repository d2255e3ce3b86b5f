"""What the cases damage copies of: a trained job, its files to ship, data of every form; a few images each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import cifar10
from common.data.demo import digits
from common.data.demo.cifar10 import python2_pickle
from common.data.demo.folder import MARKER
from common.models.foreign import float_network
from tests.faults.harness import somewhere, type_in

RUN = ["--data_dir=data", "--download=False", "--num_workers=0", "--device=cpu"]
RESNET20 = "single_domain/resnet20"
TRAIN = [*RUN, "--bitW=4", "--pretrained=False", "--train_batch_size=8", "--lr=0.01"]
NET = """
from torch import nn

def make(num_classes=2):
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, num_classes))
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with job/, data/, digits/, office/, photos/, net.safetensors, net.onnx and weights.pth."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    write_cifar10(folder / "data" / cifar10.FOLDER, rng)
    for place in (*(folder / "office" / domain for domain in ("one", "two")), folder / "photos"):
        for index in range(8):
            path = place / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "TRAIN_IMAGES", 60)
        patch.setattr(digits, "TEST_IMAGES", 60)
        for name in digits.TITLES:
            digits.write(folder / "digits", name)
    (folder / "net.py").write_text(NET)
    numerals = folder / "digits" / "syndigit" / "imgs_train" / "0"
    next(numerals.iterdir()).rename(numerals / "first.png")
    write_measured_job(folder / "measured")
    with somewhere(folder):
        torch.save(float_network("net.py:make", 2).state_dict(), "weights.pth")
        done(RESNET20, *TRAIN, "--num_epochs=1", "--job_dir=job")
        for name in ("net.safetensors", "net.onnx"):
            form = "onnx" if name.endswith("onnx") else "packed"
            done("export", "--checkpoint=job/checkpoint/model_best.pt", f"--out={name}", f"--format={form}")
    return folder


def write_measured_job(folder: Path) -> None:
    """What tools/crp_effect.py reads of a run of two epochs."""
    folder.mkdir()
    means = {"target": {"prec1": 50.0}}
    rows = [{"epoch": epoch, "relation_shift": {"mean": 0.1}, **means} for epoch in range(2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"best": means, "demo": True}))


def done(program: str, *words: object) -> None:
    ended = type_in(program, *words)
    assert ended.status == 0, ended.err


def write_cifar10(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("noise")
    for name in (*cifar10.TRAIN_BATCHES, cifar10.TEST_BATCH):
        batch = {"data": rng.integers(0, 255, (8, 3072), np.uint8), "labels": list(range(8))}
        (folder / name).write_bytes(python2_pickle(batch))
    (folder / cifar10.META).write_bytes(python2_pickle({"label_names": list(cifar10.CLASSES)}))
