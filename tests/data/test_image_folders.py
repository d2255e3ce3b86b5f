"""--dataset in a single-domain program: CIFAR-100's files, and a folder with train/ and test/ or val/."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import cifar100
from common.data.demo.cifar10 import python2_pickle
from common.data.demo.folder import MARKER
from common.data.folder_batches import IMAGENET_MEAN, FolderBatches
from common.data.folders import read_domain
from common.data.kinds.base import Batching
from common.data.kinds.cifar10 import Cifar10Options, load
from common.errors import UserError
from common.vision import datasets
from tests.conftest import run
from tests.tools.entry import type_in

BATCHING = Batching(train=4, test=5, seed=0, device=torch.device("cpu"))


def classes_in(folder: Path, count: int = 6, names: tuple[str, ...] = ("ant", "bee", "cow")) -> None:
    rng = np.random.default_rng(len(str(folder)))
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 120, (40, 50, 3))
            pixels[..., label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        classes_in(tmp_path / "insects" / part)
    return tmp_path / "insects"


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    """--data_dir with CIFAR-100's files, few and marked as a demo's since the published checksums do not fit them."""
    where = tmp_path / "cifar100" / "cifar-100-python"
    where.mkdir(parents=True)
    names = [f"class{index}" for index in range(100)]
    rng = np.random.default_rng(0)
    for name, count in (("train", 200), ("test", 100)):
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine = [index % 100 for index in range(count)]
        content = {"data": data, "fine_labels": fine, "coarse_labels": [0] * count, "filenames": ["x.png"] * count}
        (where / name).write_bytes(python2_pickle(content))
    (where / "meta").write_bytes(python2_pickle({"fine_label_names": names, "coarse_label_names": ["all"]}))
    (where / MARKER).write_text("a test's")
    return tmp_path


def test_cifar_100_is_read_with_its_hundred_fine_classes(hundred: Path) -> None:
    data = load(Cifar10Options(dataset="cifar100", data_dir=str(hundred), img_size=32), BATCHING)
    assert len(data.classes) == 100
    assert data.classes[99] == "class99"
    images, labels = next(iter(data.test["test"]))
    assert images.shape == (5, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_its_checksums_are_those_of_torchvision() -> None:
    known = datasets.CIFAR100
    md5 = {**dict(known.train_list), **dict(known.test_list), "meta": known.meta["md5"]}
    assert cifar100.PUBLISHED.md5 == md5
    assert (cifar100.PUBLISHED.url, cifar100.PUBLISHED.archive_md5) == (known.url, known.tgz_md5)


def test_a_file_of_it_that_is_not_the_published_one_is_refused(hundred: Path) -> None:
    (hundred / "cifar100/cifar-100-python" / MARKER).unlink()
    with pytest.raises(UserError, match="train is damaged: its md5 is"):
        cifar100.load(hundred / "cifar100", download=False)


def test_a_pickle_of_it_cannot_run_code(hundred: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (hundred / "was_run",))

    (hundred / "cifar100/cifar-100-python/train").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match="holds nothing but arrays"):
        cifar100.load(hundred / "cifar100", download=False)
    assert not (hundred / "was_run").exists()


def test_cifar_images_are_enlarged_to_the_size_asked_for(hundred: Path) -> None:
    small, large = (
        load(Cifar10Options(dataset="cifar100", data_dir=str(hundred), img_size=size), BATCHING) for size in (32, 64)
    )
    (one, _), (other, _) = (next(iter(data.test["test"])) for data in (small, large))
    assert other.shape == (5, 3, 64, 64)
    halved = torch.nn.functional.avg_pool2d(other, 2)
    assert (halved - one).abs().mean() < 0.5 * one.abs().mean()


@pytest.mark.parametrize(("size", "resize"), [(32, 32), (96, 110)])
def test_a_folder_is_cropped_as_its_size_asks(folder: Path, size: int, resize: int) -> None:
    data = load(Cifar10Options(dataset=str(folder), img_size=size), BATCHING)
    assert data.classes == ("ant", "bee", "cow")
    train = data.train["source"]
    assert isinstance(train, FolderBatches)
    assert train._crops.side == resize
    batches = [images for images, _ in train]
    assert all(images.shape[2:] == (size, size) for images in batches)
    assert sum(map(len, batches)) == 18
    again = [images for images, _ in train]
    assert all(map(torch.equal, batches, again)), "a function of seed and epoch"
    train.set_epoch(1)
    assert not torch.equal(next(iter(train))[0], batches[0])


@pytest.mark.parametrize("size", [32, 96])
def test_a_sample_has_the_images_as_an_evaluation_sees_them(folder: Path, size: int) -> None:
    train = load(Cifar10Options(dataset=str(folder), img_size=size), BATCHING).train["source"]
    assert isinstance(train, FolderBatches)
    tested = FolderBatches(image_list=train.image_list, batch_size=5, img_size=size, train=False, augment=train.augment)
    assert torch.equal(train.sample(100), torch.cat([images for images, _ in tested]))


def test_small_images_are_padded_with_black_and_large_ones_cut_to_parts_of_themselves(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), (255, 255, 255)).save(tmp_path / "set" / name / "white.png")
    images = read_domain(tmp_path, "set")
    black = -torch.tensor(IMAGENET_MEAN)[0] / 0.229
    for augment, some_black in (("pad_crop_flip", True), ("resized_crop", False)):
        batches = FolderBatches(image_list=images, batch_size=2, img_size=64, train=True, augment=augment)
        seen = []
        for epoch in range(4):
            batches.set_epoch(epoch)
            seen.append(next(iter(batches))[0][:, 0])
        assert bool((torch.cat(seen) - black).abs().lt(1e-3).any()) is some_black


@pytest.mark.parametrize(("below", "count"), [((), 4), (("val",), 3)])
def test_select_val_takes_val_or_holds_out_of_train(folder: Path, below: tuple[str, ...], count: int) -> None:
    for part in below:
        classes_in(folder / part, count=1)
    options = Cifar10Options(dataset=str(folder), img_size=32, select="val", val_fraction=0.34)
    data = load(options, BATCHING)
    held, rest = data.test["val"].image_list, data.train["source"].image_list  # type: ignore[union-attr]
    assert len(held) == (3 if below else 18 - len(rest))
    if not below:
        assert not set(held.paths) & set(rest.paths)


def test_what_is_wrong_with_a_folder_is_one_line(folder: Path, tmp_path: Path) -> None:
    wrong = [
        ({"dataset": str(tmp_path / "none")}, "there is no such folder; expected cifar10, cifar100, or a folder"),
        ({"dataset": str(tmp_path)}, "no train/ in it"),
        ({"dataset": str(folder), "shift": True}, "--shift: corrupts the images of cifar10 or cifar100"),
        ({"dataset": str(folder), "demo": True}, "the demo has images of its own"),
    ]
    for options, expected in wrong:
        with pytest.raises(UserError, match=expected):
            load(Cifar10Options(**options), BATCHING)
    (folder / "test" / "cow").rename(folder / "test" / "cat")
    with pytest.raises(UserError, match=r"only in train: cow; only in test: cat"):
        load(Cifar10Options(dataset=str(folder)), BATCHING)


def test_a_network_trained_on_a_folder_is_shipped_and_tested_with_its_classes(folder: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    words = ["--dataset", folder, "--img_size", 32, "--num_epochs", 1, "--train_batch_size", 6, "--num_workers", 0]
    result = run("single_domain/resnet20", *words, "--bitW", 4, "--pretrained", "no", "--job_dir", job)
    assert result.returncode == 0, result.stderr
    packed = tmp_path / "insects.safetensors"
    status, out, errors = type_in("export", "--checkpoint", job / "checkpoint/last.pt", "--out", packed)
    assert status == 0, errors
    status, out, errors = type_in("evaluate", "--model", packed, "--against", job / "checkpoint/last.pt")
    assert status == 0, errors
    assert "0 of 18 predictions differ" in out
    status, out, errors = type_in("predict", "--model", packed, folder / "test/ant/0.png", "--top", 3)
    assert status == 0, errors
    assert all(name in out for name in ("ant", "bee", "cow"))
