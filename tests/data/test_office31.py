"""Office-31: completeness of the published data, the two protocols, and the demo in its place."""

import hashlib
import itertools
import multiprocessing
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import office31
from common.data.demo import office31 as demo
from common.data.folder_batches import FolderBatches
from common.data.splits import WHOLE_DOMAIN
from common.errors import UserError


@pytest.fixture(scope="session")
def office31_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write(tmp_path_factory.mktemp("office31")).parent


@pytest.fixture
def dslr(tmp_path: Path) -> Path:
    """A dslr folder as published by its counts: 498 files in 31 classes; returns the --data_dir."""
    (tmp_path / "one.jpg").write_bytes(b"never opened")
    for index in range(498):
        folder = tmp_path / "data" / "office31" / "dslr" / "images" / office31.CLASSES[index % 31]
        folder.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "one.jpg", folder / f"frame_{index // 31 + 1:04d}.jpg")
    return tmp_path / "data"


def test_the_published_counts_add_up() -> None:
    assert len(set(office31.CLASSES)) == 31
    assert sum(office31.IMAGE_COUNTS.values()) == 4110


def test_a_complete_domain_is_read_from_both_levels(dslr: Path) -> None:
    images = office31.load(dslr, "dslr")
    assert images.paths == office31.load(dslr / "office31", "dslr").paths
    assert images.classes == tuple(sorted(office31.CLASSES))
    assert len(images) == 498
    assert not images.demo


def test_30_classes_are_refused_unless_allowed(dslr: Path) -> None:
    shutil.rmtree(dslr / "office31" / "dslr" / "images" / "mug")
    with pytest.raises(UserError, match=r"482 images of 30 classes, without mug, where .* 498 of 31.*--allow_partial"):
        office31.load(dslr, "dslr")
    assert len(office31.load(dslr, "dslr", allow_partial=True).classes) == 30


def test_a_missing_image_is_refused_unless_allowed(dslr: Path) -> None:
    (dslr / "office31" / "dslr" / "images" / "mug" / "frame_0001.jpg").unlink()
    with pytest.raises(UserError, match=r"497 images of 31 classes where"):
        office31.load(dslr, "dslr")
    assert len(office31.load(dslr, "dslr", allow_partial=True)) == 497


def test_another_data_set_has_the_classes_of_its_folders(dslr: Path) -> None:
    (dslr / "office31" / "dslr").rename(dslr / "Product")
    assert len(office31.load(dslr, "Product")) == 498
    shutil.rmtree(dslr / "Product" / "images" / "pen")
    assert len(office31.load(dslr, "Product").classes) == 30


def test_missing_data_say_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        office31.load(tmp_path, "webcam")
    message = str(caught.value)
    for part in (
        tmp_path / "office31",
        "domain_adaptation_images.tar.gz",
        "1b536d114869a5a8aa4580b89e9758fb",
        "0B4IapRTv9pJ1WGZVd1VDMmhwdlE",
        tmp_path / "office31" / "webcam" / "images",
        "--demo",
    ):
        assert str(part) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("given", "advised"), [("office31/dslr", "office31"), ("office31/dslr/images", "office31"), ("..", "data")]
)
def test_a_wrong_level_names_the_right_one(dslr: Path, given: str, advised: str) -> None:
    with pytest.raises(UserError, match=f"give --data_dir .*/{advised}$"):
        office31.load(dslr / given, "dslr")


def test_domains_in_a_folder_of_another_name_are_pointed_out(dslr: Path) -> None:
    (dslr / "office31").rename(dslr / "domain_adaptation_images")
    with pytest.raises(UserError, match=r"give --data_dir .*/data/domain_adaptation_images$"):
        office31.load(dslr, "dslr")


# the demo


def test_the_demo_has_three_looks_of_31_classes(office31_demo: Path) -> None:
    for look in ("amazon", "dslr", "webcam"):
        images = office31.load(office31_demo, look)  # its counts are not the published ones
        assert images.demo
        assert images.classes == tuple(sorted(office31.CLASSES))
        assert set(Counter(images.labels).values()) == {demo.IMAGES_PER_CLASS}
        assert Image.open(images.root / images.paths[0]).size == (demo.SIZE, demo.SIZE)
    assert "not Office-31" in (office31_demo / "office31" / "DEMO.txt").read_text()


def test_the_demo_trains_on_at_most_300_images_a_look(office31_demo: Path, tmp_path: Path) -> None:
    for domain in office31.load_pair(office31_demo, "amazon", "webcam", split_dir=tmp_path):
        assert len(domain.train) == 279
        assert len(domain.test) == 93
        assert set(Counter(domain.test.labels).values()) == {3}
    assert sorted(os.listdir(tmp_path)) == ["split_amazon.tsv", "split_webcam.tsv"]


def test_the_transductive_protocol_uses_every_image_twice(office31_demo: Path) -> None:
    for domain in office31.load_pair(office31_demo, "dslr", "webcam", train_split=False):
        assert domain.protocol == WHOLE_DOMAIN
        assert domain.train.paths == domain.test.paths
        assert len(domain.train) == 31 * demo.IMAGES_PER_CLASS


def test_a_pair_with_different_classes_is_refused(office31_demo: Path, tmp_path: Path) -> None:
    shutil.copytree(office31_demo / "office31", tmp_path / "office31")
    shutil.rmtree(tmp_path / "office31" / "webcam" / "images" / "stapler")
    with pytest.raises(UserError, match=r"only in dslr: stapler; only in webcam: none"):
        office31.load_pair(tmp_path, "dslr", "webcam")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_processes_write_one_demo_and_the_same_again(office31_demo: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=demo.write, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [name for name in os.listdir(tmp_path) if name != ".lock"] == ["office31"]
    assert digests(tmp_path / "office31") == digests(office31_demo / "office31")


def test_the_demo_is_written_once_and_never_over_real_data(office31_demo: Path, dslr: Path) -> None:
    file = office31_demo / "office31" / "dslr" / "images" / "mug" / "frame_0001.jpg"
    before = file.stat().st_mtime_ns
    demo.write(office31_demo)
    assert file.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not the demo's"):
        demo.write(dslr)
    assert len(office31.load(dslr, "dslr")) == 498


def test_no_sign_is_another_or_its_mirror_image() -> None:
    """Training mirrors at random, so a class that is another's mirror image could not be learned."""
    signs = []
    for name in office31.CLASSES:
        sign = np.asarray(demo._sign(name).resize((48, 48))) / 255.0
        signs.append((sign, sign[:, ::-1]))
    for one, other in itertools.combinations(signs, 2):
        assert min(np.abs(one[0] - view).mean() for view in other) > 0.1


def test_dslr_and_webcam_are_near_and_amazon_is_far(office31_demo: Path) -> None:
    """By colours alone: the distance between the mean images of two looks."""
    means = {}
    for look in ("amazon", "dslr", "webcam"):
        images = office31.load(office31_demo, look)
        batches = FolderBatches(image_list=images, batch_size=len(images), img_size=32, train=False)
        means[look] = next(iter(batches))[0].mean((0, 2, 3))
    assert (means["dslr"] - means["webcam"]).norm() < 0.5 * (means["amazon"] - means["dslr"]).norm()
    assert (means["dslr"] - means["webcam"]).norm() < 0.5 * (means["amazon"] - means["webcam"]).norm()


def test_domains_called_amazon_and_webcam_of_other_classes_are_not_taken_for_office_31(tmp_path: Path) -> None:
    for domain in ("amazon", "webcam"):
        for name in ("bird", "fish"):
            folder = tmp_path / domain / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (20, 20)).save(folder / f"{number}.png")
    source, target = office31.load_pair(tmp_path, "amazon", "webcam")
    assert source.train.classes == target.train.classes == ("bird", "fish")
    below = tmp_path / "office31"
    below.mkdir()
    for domain in ("amazon", "webcam"):
        (tmp_path / domain).rename(below / domain)
    with pytest.raises(UserError, match="where Office-31's amazon has 2817 of 31"):
        office31.load_pair(tmp_path, "amazon", "webcam")
