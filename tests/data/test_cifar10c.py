"""CIFAR-10-C in its published form, small: read as it is, and one line for what it should not be."""

from pathlib import Path

import numpy as np
import pytest

from common.data import cifar10c
from common.errors import UserError

IMAGES = 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cifar10c, "IMAGES", IMAGES)
    return write(tmp_path / "cifar10c")


def write(folder: Path, images: int = IMAGES) -> Path:
    """Files whose pixels say kind, severity and image."""
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(np.arange(images) % 10, 5).astype(np.uint8))
    for place, kind in enumerate((*cifar10c.KINDS, *cifar10c.EXTRA)):
        pixels = np.zeros((5 * images, 32, 32, 3), np.uint8)
        pixels[..., 0] = place
        pixels[..., 1] = np.repeat(np.arange(1, 6), images)[:, None, None]
        pixels[..., 2] = np.tile(np.arange(images), 5)[:, None, None]
        np.save(folder / f"{kind}.npy", pixels)
    return folder


def refusal(folder: Path, kind: str = "fog") -> str:
    with pytest.raises(UserError) as error:
        cifar10c.load(cifar10c.find(folder), kind)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_fifteen_kinds_and_four_at_five_severities(folder: Path) -> None:
    assert (len(cifar10c.KINDS), len(cifar10c.EXTRA)) == (15, 4)
    for place, kind in enumerate((*cifar10c.KINDS, *cifar10c.EXTRA)):
        sets = cifar10c.load(cifar10c.find(folder.parent), kind)
        assert len(sets) == 5
        for severity, images in enumerate(sets, start=1):
            assert images.images.shape == (IMAGES, 3, 32, 32)
            assert images.images[:, :, 0, 0].tolist() == [[place, severity, index] for index in range(IMAGES)]
            assert images.labels.tolist() == [0, 1, 2, 3]


def test_the_folder_may_have_its_published_name_or_be_given_itself(folder: Path) -> None:
    assert cifar10c.find(folder) == folder
    folder.rename(folder.with_name("CIFAR-10-C"))
    assert cifar10c.find(folder.parent).name == "CIFAR-10-C"


def test_a_missing_set_and_a_missing_kind_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "snow.npy").unlink()
    assert "snow.npy is missing" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert "no CIFAR-10-C in" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fog", np.zeros((5 * IMAGES, 3, 32, 32), np.uint8)),
        ("fog", np.zeros((5 * IMAGES - 1, 32, 32, 3), np.uint8)),
        ("fog", np.zeros((5 * IMAGES, 32, 32, 3), np.float32)),
        ("fog", np.zeros((5 * IMAGES, 32, 32, 3), np.int16)),
        ("labels", np.zeros(IMAGES, np.uint8)),
        ("labels", np.full(5 * IMAGES, 10, np.uint8)),
        ("labels", np.full(5 * IMAGES, -1, np.int64)),
        ("labels", np.zeros(5 * IMAGES, np.float64)),
    ],
)
def test_a_wrong_shape_length_or_type_is_one_line(folder: Path, name: str, content: np.ndarray) -> None:
    np.save(folder / f"{name}.npy", content)
    assert f"{name}.npy" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "fog.npy").write_bytes(content)
    assert "fog.npy: not a complete NumPy file" in refusal(folder)


def test_a_file_that_is_cut_short_and_one_of_objects_are_refused(folder: Path) -> None:
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[:-100])
    assert "not a complete NumPy file" in refusal(folder)
    np.save(folder / "fog.npy", np.array([{"a": 1}], dtype=object))
    assert "fog.npy" in refusal(folder)
    with open(folder / "fog.npy", "wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "fog.npy" in refusal(folder)
