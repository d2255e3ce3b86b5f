import multiprocessing
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from common.data import cifar10
from common.data.demo import cifar10 as demo
from common.data.demo import folder as demo_folder
from common.data.demo import sources
from common.data.demo.cifar10 import python2_pickle
from common.data.download import md5_of
from common.errors import UserError
from common.vision import datasets


def theirs(folder: Path, train: bool) -> datasets.CIFAR10:
    """torchvision's own reader, told the checksums of `folder`."""

    class Reader(datasets.CIFAR10):
        train_list: ClassVar = [[name, md5_of(folder / name)] for name in cifar10.TRAIN_BATCHES]
        test_list: ClassVar = [["test_batch", md5_of(folder / "test_batch")]]
        meta: ClassVar = {**datasets.CIFAR10.meta, "md5": md5_of(folder / "batches.meta")}

    return Reader(folder.parent, train=train)


def test_our_reader_and_torchvisions_find_the_same_images_and_labels(cifar10_demo):
    for ours, train in zip(cifar10.load(cifar10_demo), (True, False), strict=True):
        their = theirs(cifar10_demo, train)
        assert torch.equal(ours.images.permute(0, 2, 3, 1), torch.from_numpy(their.data))
        assert ours.labels.tolist() == their.targets
        assert list(ours.classes) == their.classes


def test_the_demo_batches_read_as_the_data_sets_own_page_says(cifar10_demo):
    content = pickle.loads((cifar10_demo / "data_batch_1").read_bytes(), encoding="bytes")
    assert set(content) == {b"batch_label", b"labels", b"data", b"filenames"}
    assert content[b"data"].dtype == np.uint8
    assert content[b"data"].shape == (len(content[b"labels"]), 3072)
    assert content[b"batch_label"] == b"training batch 1 of 5"
    meta = pickle.loads((cifar10_demo / "batches.meta").read_bytes(), encoding="bytes")
    assert set(meta) == {b"num_cases_per_batch", b"label_names", b"num_vis"}
    assert meta[b"num_vis"] == 3072


def test_pickles_by_todays_numpy_are_read_too(cifar10_copy):
    train, _ = cifar10.load(cifar10_copy)
    batch = pickle.loads((cifar10_copy / "data_batch_1").read_bytes(), encoding="latin1")
    for protocol in (3, 4):
        (cifar10_copy / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
        assert torch.equal(cifar10.load(cifar10_copy)[0].images, train.images)


def test_data_dir_may_be_the_folder_or_what_holds_it(cifar10_demo):
    inside, outside = cifar10.load(cifar10_demo)[0], cifar10.load(cifar10_demo.parent)[0]
    assert torch.equal(inside.images, outside.images)


def test_the_demo_is_large_enough_and_says_what_it_is(cifar10_demo):
    train, test = cifar10.load(cifar10_demo)
    assert 1437 <= demo.TRAIN_IMAGES <= 2000
    assert demo.TEST_IMAGES >= 2000
    assert [len(train), len(test)] == [500, 200]
    assert train.images.shape[1:] == (3, 32, 32)
    for part in (train, test):
        assert "demo" in part.name
        assert len(part.classes) == 10
        assert part.labels.unique().tolist() == list(range(10))
    assert "not CIFAR-10" in (cifar10_demo / "DEMO.txt").read_text()


def test_test_digits_and_both_halves_of_the_training_digits_share_no_digit():
    parts = {part: sources.digits(part) for part in ("train", "first", "second", "test")}
    held = {part: {digit.tobytes() for digit in images} for part, (images, _) in parts.items()}
    assert {part: len(labels) for part, (_, labels) in parts.items()} == {
        "train": 1437,
        "first": 718,
        "second": 719,
        "test": 360,
    }
    for _, labels in parts.values():
        assert np.bincount(labels).min() >= 0.09 * len(labels)
    assert held["first"] | held["second"] == held["train"]
    assert not held["first"] & held["second"]
    assert not held["train"] & held["test"]


def test_test_pictures_show_other_parts_of_the_photographs(monkeypatch):
    # each place carries its own column number, so a crop tells where it was taken
    columns = np.broadcast_to(np.arange(640)[None, :, None] // 80 * 30, (427, 640, 3)).astype(np.uint8)
    monkeypatch.setattr(sources, "_photographs", lambda: [columns])
    rng = np.random.default_rng(0)
    seen = {
        held_out: {
            value for _ in range(200) for value in np.unique(sources.photograph_crop(rng, 28, held_out)).tolist()
        }
        for held_out in (True, False)
    }
    assert len(seen[True] | seen[False]) == 8
    assert not seen[True] & seen[False]


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 50)
    monkeypatch.setattr(demo, "TEST_IMAGES", 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_demo_has_the_same_bytes_everywhere_and_moves_no_random_state(small_demo, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = demo.write(tmp_path / "one")
    np.random.seed(3)  # noqa: NPY002
    again = np.random.get_state()[1].copy()  # noqa: NPY002
    assert contents(first) == contents(demo.write(tmp_path / "two"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1] == again).all()  # noqa: NPY002


def test_the_demo_is_written_once(small_demo, tmp_path):
    folder = demo.write(tmp_path)
    stamp = folder.stat().st_ino, (folder / "data_batch_1").stat().st_mtime_ns
    assert demo.write(tmp_path) == folder
    assert (folder.stat().st_ino, (folder / "data_batch_1").stat().st_mtime_ns) == stamp


def test_processes_that_start_together_build_one_set(small_demo, tmp_path, monkeypatch):
    fill = demo._fill
    built = tmp_path / "built"

    def counting_fill(folder: Path) -> None:
        with open(built, "ab") as file:
            file.write(b".")
        fill(folder)

    monkeypatch.setattr(demo, "_fill", counting_fill)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)

    def write() -> None:
        start.wait(10)
        demo.write(tmp_path / "data")

    processes = [context.Process(target=write) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert built.read_bytes() == b"."
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"cifar-10-batches-py", ".lock"}
    assert [len(part) for part in cifar10.load(tmp_path / "data")] == [50, 20]


def test_a_run_killed_while_building_leaves_nothing_that_looks_like_data(small_demo, tmp_path, monkeypatch):
    def killed(folder: Path) -> None:
        (folder / "data_batch_1").write_bytes(b"half")
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=demo_folder.build_once, args=(tmp_path / cifar10.FOLDER, "about", killed)
    )
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert not (tmp_path / cifar10.FOLDER).exists()
    demo.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cifar-10-batches-py", ".lock"}
    assert len(cifar10.load(tmp_path)[0]) == 50


def test_a_newer_generator_makes_the_demo_again(small_demo, tmp_path, monkeypatch):
    folder = demo.write(tmp_path)
    (folder / "data_batch_1").unlink()
    monkeypatch.setattr(demo, "ABOUT", demo.ABOUT.replace("version 1", "version 1a"))
    assert (demo.write(tmp_path) / "data_batch_1").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"cifar-10-batches-py", ".lock"}


def test_the_demo_never_replaces_data_that_are_not_its_own(tmp_path):
    folder = tmp_path / cifar10.FOLDER
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{folder} holds data that are not the demo's"):
        demo.write(tmp_path)
    assert contents(folder) == {"data_batch_1": b"mine"}


def test_without_the_marker_the_published_checksums_are_required(cifar10_copy):
    (cifar10_copy / "DEMO.txt").unlink()
    with pytest.raises(UserError, match=r"data_batch_1 is damaged: its md5 is .*c99cafc152244af753f735de768cd75f"):
        cifar10.load(cifar10_copy)


def test_a_missing_batch_is_named(cifar10_copy):
    (cifar10_copy / "data_batch_4").unlink()
    with pytest.raises(UserError, match=f"{cifar10_copy / 'data_batch_4'} is missing"):
        cifar10.load(cifar10_copy)


def batch(**changes: object) -> bytes:
    content = {"batch_label": "x", "labels": [0, 9], "data": np.zeros((2, 3072), np.uint8), "filenames": ["a", "b"]}
    return python2_pickle({**content, **changes})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (batch()[:3000], "cannot be read"),
        (b"", "cannot be read"),
        (b"<html>quota exceeded</html>", "cannot be read"),
        (python2_pickle([1, 2]), "expected a dictionary, found list"),
        (batch(data=np.zeros((2, 3071), np.uint8)), r"\(N, 3072\).*found uint8 \(2, 3071\)"),
        (batch(data=[1, 2]), "found list"),
        (batch(labels=[1]), "expected 2 labels for its images, found 1"),
        (batch(labels=[0, 10]), "labels from 0 to 9"),
        (batch(labels="ab"), "found none"),
    ],
)
def test_a_damaged_batch_is_refused_by_name(content, reason, cifar10_copy):
    (cifar10_copy / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match=f"{cifar10_copy / 'data_batch_2'} is damaged.*{reason}") as caught:
        cifar10.load(cifar10_copy)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_batch_cannot_run_code(protocol, cifar10_copy, tmp_path):
    bomb = Bomb()
    bomb.path = str(tmp_path / "exploded")
    (cifar10_copy / "data_batch_2").write_bytes(pickle.dumps({"data": bomb}, protocol=protocol))
    with pytest.raises(UserError, match=r"data_batch_2 is damaged.*asks for posix.mkdir"):
        cifar10.load(cifar10_copy)
    assert not (tmp_path / "exploded").exists()


def test_missing_data_are_told_where_to_come_from(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    for download in (True, False):
        with pytest.raises(UserError) as caught:
            cifar10.load(tmp_path / "data", download=download)
        message = str(caught.value)
        assert "\n" not in message
        for part in (str(tmp_path / "data"), "cifar-10-python.tar.gz", datasets.CIFAR10.url, "--demo"):
            assert part in message


def test_an_archive_that_lies_there_is_unpacked(cifar10_demo, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(cifar10_demo, cifar10_demo.name)
    train, _ = cifar10.load(tmp_path, download=False)
    assert torch.equal(train.images, cifar10.load(cifar10_demo)[0].images)


def test_published_addresses_and_checksums_are_torchvisions() -> None:
    published = dict([*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list])
    assert {**published, cifar10.META: datasets.CIFAR10.meta["md5"]} == cifar10._MD5
    assert (datasets.CIFAR10.url, datasets.CIFAR10.tgz_md5) == (cifar10._URL, cifar10._ARCHIVE_MD5)
    assert datasets.CIFAR10.base_folder == cifar10.FOLDER
