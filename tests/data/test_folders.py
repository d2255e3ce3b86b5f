"""Domain folders: what is found where, how it is split, and that batches depend on nothing but their key."""

import hashlib
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common.data.folder_batches import IMAGENET_MEAN, IMAGENET_STD, FolderBatches
from common.data.folders import ImageList, check_same_classes, read_domain
from common.data.splits import WHOLE_DOMAIN, partition
from common.errors import UserError
from common.vision import transforms

CLASSES = ("bike", "mug", "pen")
LEVELS = pytest.mark.parametrize("level", ["", "images"])


def write_domain(folder: Path, classes: Iterable[str] = CLASSES, images_per_class: int = 5) -> Path:
    """Class folders of small JPEG files, no two alike."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(images_per_class):
            seed = hashlib.sha256(f"{name}/{number}".encode()).digest()
            pixels = np.random.default_rng(list(seed)).integers(256, size=(20 + number, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"frame_{number:04d}.jpg")
    return folder


@pytest.fixture(scope="module")
def webcam(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    root = tmp_path_factory.mktemp("folders")
    write_domain(root / "webcam" / "images")
    return read_domain(root, "webcam")


@pytest.fixture
def damaged(tmp_path: Path) -> ImageList:
    """A domain in which one JPEG is cut short."""
    folder = write_domain(tmp_path / "webcam")
    file = folder / "mug" / "frame_0002.jpg"
    file.write_bytes(file.read_bytes()[:400])
    return read_domain(tmp_path, "webcam")


def epochs(images: ImageList, chosen: Iterable[int], **options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    batches = FolderBatches(**{"image_list": images, "batch_size": 4, "img_size": 14, "train": True, **options})
    drawn = []
    for epoch in chosen:
        batches.set_epoch(epoch)
        drawn += list(batches)
    return drawn


def identical(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    pairs = list(itertools.zip_longest(itertools.chain(*one), itertools.chain(*other)))
    return bool(pairs) and all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


# reading


@LEVELS
def test_both_levels_are_read_alike(tmp_path: Path, level: str) -> None:
    write_domain(tmp_path / "art" / level)
    (tmp_path / "art" / level / "mug" / "._frame_0001.jpg").write_bytes(b"resource fork")
    (tmp_path / "art" / level / "mug" / "Thumbs.db").write_bytes(b"thumbnails")
    images = read_domain(tmp_path, "art")
    assert images.classes == CLASSES
    assert images.paths == tuple(f"{name}/frame_{number:04d}.jpg" for name in CLASSES for number in range(5))
    assert images.labels == (0,) * 5 + (1,) * 5 + (2,) * 5
    assert not images.demo


def test_the_order_of_a_listing_does_not_matter(
    tmp_path: Path, webcam: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = partition(webcam, folder=tmp_path / "a")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    again = read_domain(webcam.root.parents[1], "webcam")
    assert again.paths == webcam.paths
    assert partition(again, folder=tmp_path / "b").train.paths == before.train.paths
    names = [tmp_path / run / "split_webcam.tsv" for run in "ab"]
    assert names[0].read_bytes() == names[1].read_bytes()


@LEVELS
def test_a_root_one_level_too_low_names_the_folder_above(tmp_path: Path, level: str) -> None:
    write_domain(tmp_path / "webcam" / "images")
    with pytest.raises(UserError, match=f"give --data_dir {re.escape(str(tmp_path))}$"):
        read_domain(tmp_path / "webcam" / level, "webcam")


def test_a_root_one_level_too_high_names_the_folder_below(tmp_path: Path) -> None:
    write_domain(tmp_path / "office31" / "webcam" / "images")
    with pytest.raises(UserError, match=f"give --data_dir {re.escape(str(tmp_path))}/office31$"):
        read_domain(tmp_path, "webcam")


@LEVELS
def test_domains_are_not_taken_for_classes(tmp_path: Path, level: str) -> None:
    for domain in ("amazon", "dslr", "webcam"):
        write_domain(tmp_path / "office31" / domain / level)
    with pytest.raises(UserError, match=f"amazon, dslr, webcam.*give --data_dir {re.escape(str(tmp_path))}/office31 "):
        read_domain(tmp_path, "office31")


def test_one_class_is_a_wrong_folder(tmp_path: Path) -> None:
    write_domain(tmp_path / "webcam", classes=["mug"])
    with pytest.raises(UserError, match="only one class"):
        read_domain(tmp_path, "webcam")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_domain(tmp_path / "webcam")
    (tmp_path / "webcam" / "ruler").mkdir()
    with pytest.raises(UserError, match="no images in ruler"):
        read_domain(tmp_path, "webcam")


def test_a_missing_domain_names_those_that_are_there(tmp_path: Path) -> None:
    write_domain(tmp_path / "Art")
    with pytest.raises(UserError, match=r"no domain Clipart in .*, which holds Art;"):
        read_domain(tmp_path, "Clipart")
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        read_domain(tmp_path / "nowhere", "Clipart")


def test_different_classes_are_named(webcam: ImageList) -> None:
    other = replace(webcam, classes=("bike", "mug", "ruler"), domain="dslr")
    check_same_classes(webcam, replace(webcam, domain="dslr"))
    with pytest.raises(UserError, match=r"only in webcam: pen; only in dslr: ruler"):
        check_same_classes(webcam, other)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour"),
    [
        ("L", "jpg", (90, 90, 90)),
        ("1", "png", (255, 255, 255)),
        ("LA", "png", (90, 90, 90)),
        ("P", "png", (200, 40, 90)),
        ("P", "gif", (200, 40, 90)),
        ("CMYK", "jpg", (200, 40, 90)),
        ("RGBA", "png", (200, 40, 90)),
    ],
)
def test_every_colour_mode_becomes_rgb(
    tmp_path: Path, webcam: ImageList, mode: str, suffix: str, colour: tuple[int, int, int]
) -> None:
    picture = Image.new("RGB", (40, 30), colour).convert(mode, palette=Image.Palette.ADAPTIVE)
    picture.save(tmp_path / f"mug.{suffix}")
    assert Image.open(tmp_path / f"mug.{suffix}").mode == mode
    image = replace(webcam, root=tmp_path, paths=(f"mug.{suffix}",), labels=(1,)).image(0, side=16)
    assert image.dtype == torch.uint8
    assert image.shape == (16, 16, 3)
    assert (image - torch.tensor(colour)).abs().max() <= 3


# splitting


def list_of(sizes: list[int], root: Path = Path("unused")) -> ImageList:
    """A list of files that need not exist."""
    names = [f"class_{label:02d}" for label in range(len(sizes))]
    members = [(f"{name}/{i:04d}.jpg", label) for label, name in enumerate(names) for i in range(sizes[label])]
    return ImageList(root, tuple(p for p, _ in members), tuple(label for _, label in members), tuple(names), "art")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(0, 5))
def test_a_split_is_disjoint_complete_and_stratified(sizes: list[int], seed: int) -> None:
    images = list_of(sizes)
    domain = partition(images, seed=seed)
    assert not set(domain.train.paths) & set(domain.test.paths)
    assert sorted(domain.train.paths + domain.test.paths) == sorted(images.paths)
    train, test = Counter(domain.train.labels), Counter(domain.test.labels)
    for label, size in enumerate(sizes):
        assert train[label] == (1 if size == 1 else min(max(int(0.8 * size), 1), size - 1))
        assert train[label] + test[label] == size
        assert test[label] >= 1 or size == 1
    for part in (domain.train, domain.test):
        assert all(path.startswith(images.classes[label]) for path, label in zip(part.paths, part.labels, strict=True))


def test_a_split_follows_from_names_and_seed_alone() -> None:
    """Part of the file format: runs made by different versions stay comparable."""
    images = list_of([5])
    assert partition(images).test.paths == ("class_00/0003.jpg",)
    assert len({partition(images, seed=seed).test.paths for seed in range(20)}) == 5
    shuffled = images.subset([3, 1, 4, 0, 2])
    assert set(partition(shuffled).train.paths) == set(partition(images).train.paths)


def test_a_split_is_written_once_and_read_afterwards(tmp_path: Path) -> None:
    images = list_of([6, 7])
    first = partition(images, folder=tmp_path / "run")
    assert first.list_file == tmp_path / "run" / "split_art.tsv"
    assert first.protocol == "80/20 split per class, seed 1"
    assert os.listdir(tmp_path / "run") == ["split_art.tsv"]  # no temporary file, no copy of an image
    written = first.list_file.read_text()
    first.list_file.write_text(
        written.replace("train\t0", "held\t0", 1).replace("test\t0", "train\t0", 1).replace("held", "test")
    )
    moved = partition(images, folder=tmp_path / "run")
    assert moved.protocol == first.protocol
    assert moved.train.paths != first.train.paths
    assert len(moved.train) == len(first.train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("class_00/0003", "class_00/9999"),
            r"only in the folder: class_00/0003.jpg; only in the list: class_00/9999",
        ),
        (lambda text: text[: len(text) // 2].rpartition("\n")[0], "lists 5 images where unused holds 13"),
        (lambda text: text + text.splitlines()[-1], "lists 14 images"),
        (lambda text: text.replace("seed 1", "seed 2"), "seed 2; expected the 80/20 split per class, seed 1"),
        (lambda text: text.replace("train\t0", "training\t0"), "expected train or test"),
        (lambda text: "", "lists 0 images"),
    ],
)
def test_a_list_file_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:
    images = list_of([6, 7])
    file = partition(images, folder=tmp_path).list_file
    assert file
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=message):
        partition(images, folder=tmp_path)


def test_a_list_file_written_by_hand_is_used(tmp_path: Path) -> None:
    images = list_of([2, 2])
    rows = [f"{'test' if i % 2 else 'train'}\t{images.labels[i]}\t{images.paths[i]}" for i in (3, 0, 1, 2)]
    (tmp_path / "split_art.tsv").write_text("\r\n".join(rows))
    domain = partition(images, folder=tmp_path)
    assert domain.test.paths == images.paths[1::2]
    assert "split_art.tsv" in domain.protocol


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*split_art.tsv"):
        partition(list_of([3]), folder=tmp_path / "run")


def test_without_a_split_the_whole_domain_is_both(tmp_path: Path, webcam: ImageList) -> None:
    domain = partition(webcam, train_split=False, folder=tmp_path)
    assert domain.train.paths == domain.test.paths == webcam.paths
    assert domain.protocol == WHOLE_DOMAIN
    assert not list(tmp_path.iterdir())


# batches


def test_test_batches_are_the_published_transform(webcam: ImageList) -> None:
    published = transforms.Compose(
        [
            transforms.Resize((256, 256)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    files = [Image.open(webcam.root / path).convert("RGB") for path in webcam.paths]
    ((images, labels),) = epochs(webcam, [3], batch_size=15, img_size=224, train=False)
    assert torch.equal(images, torch.stack([published(file) for file in files]))
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(webcam.labels)


def test_training_crops_and_mirrors_the_resized_image(webcam: ImageList) -> None:
    """Every training image is one of the 2 x 3 x 3 windows of its 16 x 16 original, and all kinds occur."""
    originals = webcam.decoded(16).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    windows = originals.unfold(2, 14, 1).unfold(3, 14, 1).permute(0, 2, 3, 1, 4, 5)
    windows = (torch.stack([windows, windows.flip(-1)], dim=1) - mean) / std  # (15, 2, 3, 3, 3, 14, 14)
    seen: Counter[tuple[int, ...]] = Counter()
    for images, labels in epochs(webcam, range(20)):
        for image, label in zip(images, labels, strict=True):
            places = (windows - image).abs().amax((-1, -2, -3)).lt(1e-6).nonzero().tolist()
            assert len(places) == 1
            assert webcam.labels[places[0][0]] == label
            seen[tuple(places[0])] += 1
    assert {place[0] for place in seen} == set(range(15))
    by_kind = Counter(place[1:] for place in seen.elements())
    assert len(by_kind) == 18
    assert by_kind.total() == 300
    assert 100 < sum(count for kind, count in by_kind.items() if kind[0]) < 200


@pytest.mark.parametrize(
    "options", [{"num_workers": 1}, {"num_workers": 2}, {"cache": False}, {"num_workers": 2, "cache": False}]
)
def test_batches_are_bit_identical_whoever_makes_them(webcam: ImageList, options: dict) -> None:
    assert identical(epochs(webcam, range(3)), epochs(webcam, range(3), **options))


def test_a_resumed_epoch_is_bit_identical(webcam: ImageList) -> None:
    through = epochs(webcam, range(4), num_workers=2)
    torch.manual_seed(123)
    assert identical(through[8:], epochs(webcam, [2, 3]))


def test_an_abandoned_iteration_leaves_no_trace(webcam: ImageList) -> None:
    """The longer loader of a pair is left in mid-epoch; its workers live on."""
    batches = FolderBatches(image_list=webcam, batch_size=2, img_size=14, train=True, num_workers=2)
    next(iter(batches))
    batches.set_epoch(1)
    assert identical(list(batches), epochs(webcam, [1], batch_size=2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_state_is_neither_read_nor_advanced(webcam: ImageList, num_workers: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epochs(webcam, [0], num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert identical(first, epochs(webcam, [0], num_workers=num_workers))


def test_every_part_of_the_key_counts(webcam: ImageList) -> None:
    batches = FolderBatches(image_list=webcam, batch_size=15, img_size=14, train=True)
    batches.set_epoch(0, cycle=1)
    draws = [next(iter(batches))[0]]
    for options in ({}, {"seed": 1}, {"domain": "target"}):
        draws.append(epochs(webcam, [0], batch_size=15, **options)[0][0])
    draws.append(epochs(webcam, [1], batch_size=15)[0][0])
    for one, other in itertools.combinations(draws, 2):
        assert not torch.equal(one, other)


def test_every_image_comes_once_an_epoch(webcam: ImageList) -> None:
    labels = torch.cat([labels for _, labels in epochs(webcam, [5])])
    assert labels.bincount().tolist() == [5, 5, 5]
    batches = FolderBatches(image_list=webcam, batch_size=4, img_size=14, train=True, drop_last=True)
    assert len(batches) == 3
    assert [len(labels) for _, labels in batches] == [4, 4, 4]
    assert len(FolderBatches(image_list=webcam, batch_size=4, img_size=14, train=False)) == 4


def test_decoded_images_are_kept_in_memory(tmp_path: Path, webcam: ImageList) -> None:
    shutil.copytree(webcam.root, tmp_path / "webcam")
    images = read_domain(tmp_path, "webcam")
    batches = FolderBatches(image_list=images, batch_size=4, img_size=14, train=True)
    assert batches.cache
    first = list(batches)
    shutil.rmtree(tmp_path / "webcam")
    assert identical(first, list(batches))


@pytest.mark.parametrize("options", [{}, {"cache": False}, {"cache": False, "num_workers": 2}])
def test_a_truncated_image_is_one_clear_error(damaged: ImageList, options: dict) -> None:
    with pytest.raises(UserError, match=r"cannot read the image .*mug/frame_0002.jpg \(.*\); expected") as caught:
        epochs(damaged, [0], **options)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_what_cannot_be_batched_is_refused(webcam: ImageList) -> None:
    with pytest.raises(UserError, match="--train_batch_size 15"):
        FolderBatches(image_list=webcam, batch_size=16, train=True, drop_last=True)
    with pytest.raises(UserError, match="no images"):
        FolderBatches(image_list=webcam.subset([]), batch_size=16, train=False)
