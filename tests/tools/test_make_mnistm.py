"""tools/make_mnistm.py on a few digits and photographs: what it blends, that the reader takes it, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import digits
from common.writing import write_whole
from tests.tools.entry import refused, type_in

TRAIN, TEST = 40, 10


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mnist/ with random digits, and photos/ with three photographs, of one colour each, of different sizes."""
    random = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        (tmp_path / "mnist" / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    for place, colour, size in (
        ("1.png", (200, 100, 0), (28, 28)),
        ("2.png", (7, 77, 177), (60, 30)),
        ("deeper/3.png", (255, 0, 128), (30, 90)),
    ):
        Image.new("RGB", size, colour).save(tmp_path / "photos" / place)
    monkeypatch.setattr(digits, "_COUNTS", {})
    return tmp_path


def make(folder: Path, out: str, *words: object) -> tuple[torch.Tensor, torch.Tensor]:
    flags = ("--photos", folder / "photos", "--data_dir", folder, "--out", folder / out, *words)
    status, said, err = type_in("make_mnistm", *flags)
    assert status == 0, err
    assert f"{TRAIN} + {TEST} images for training and test, from 3 photographs" in said
    train, test = digits.load("mnistm", folder / out, 28, download=False)
    assert len(test) == TEST
    return train.images, train.labels


def test_every_image_is_a_digit_taken_from_a_photograph_in_each_channel(folder: Path) -> None:
    images, labels = make(folder, "mnistm")
    plain, _ = digits.load("mnist", folder, 28, download=False)
    assert torch.equal(labels, plain.labels)
    colours = torch.tensor([[200, 100, 0], [7, 77, 177], [255, 0, 128]])[:, None, :, None, None]
    blends = (colours - plain.images.int()).abs()
    of = (blends == images.int()).flatten(2).all(2)
    assert (of.sum(0) == 1).all(), "each image is a blend with one of the photographs"
    assert of.any(1).all(), "every photograph is used"


def test_crops_come_from_all_over_a_photograph(folder: Path) -> None:
    for path in (folder / "photos" / "1.png", folder / "photos" / "deeper" / "3.png"):
        path.unlink()
    rows = np.arange(40, dtype=np.uint8)[:, None, None]
    Image.fromarray(np.broadcast_to(rows, (40, 33, 3)).copy()).save(folder / "photos" / "1.png")
    Image.fromarray(np.broadcast_to(rows, (40, 33, 3)).copy()).save(folder / "photos" / "3.png")
    (folder / "photos" / "2.png").unlink()
    Image.fromarray(np.broadcast_to(rows, (40, 33, 3)).copy()).save(folder / "photos" / "2.png")
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        (folder / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(idx(np.zeros((count, 28, 28), np.uint8)))
    images, _ = make(folder, "mnistm")
    tops = images[:, 0, 0, 0].int()
    assert torch.equal(images[:, 0, :, 0].int(), tops[:, None] + torch.arange(28))
    assert {0, 12} <= set(tops.tolist()) <= set(range(13)), "the first and the last possible row among them"


def test_the_seed_decides_everything(folder: Path) -> None:
    first, again, other = make(folder, "a")[0], make(folder, "b")[0], make(folder, "c", "--seed", 1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_faults_are_one_line_and_leave_no_file(folder: Path) -> None:
    flags = ("--data_dir", folder, "--out", folder / "out", "--download", "False", "--photos")
    assert "there is no such file or folder" in refused("make_mnistm", *flags, folder / "nowhere")
    (folder / "empty").mkdir()
    assert "no images in it" in refused("make_mnistm", *flags, folder / "empty")
    small = folder / "empty" / "small.png"
    Image.new("RGB", (27, 90)).save(small)
    assert "27 x 90 pixels; expected at least 28 x 28" in refused("make_mnistm", *flags, folder / "empty")
    write_whole(small, b"no image")
    assert f"{small}: cannot be read as an image" in refused("make_mnistm", *flags, folder / "empty")
    (folder / "mnist" / "DEMO.txt").touch()
    assert "has an MNIST-M of its own" in refused("make_mnistm", *flags, folder / "photos")
    assert not (folder / "out").exists()
