import gzip
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from common.data import digits
from common.data.demo import digits as demo
from common.data.demo import glyphs
from common.data.download import md5_of
from common.errors import UserError
from common.vision import datasets

NAMES = ["mnist", "mnistm", "svhn", "syndigit"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("img_size", [28, 32])
def test_every_set_has_the_size_and_colours_asked_for(name, img_size, digits_demo):
    train, test = digits.load(name, digits_demo / name, img_size, download=False)
    assert train.images.shape == (100, 3, img_size, img_size)
    assert test.images.shape == (120, 3, img_size, img_size)
    for part in (train, test):
        assert part.classes == tuple("0123456789")
        assert part.labels.unique().tolist() == list(range(10))
        assert "demo" in part.name


@pytest.mark.parametrize("name", NAMES)
def test_root_may_be_the_sets_folder_or_the_shared_one(name, digits_demo):
    own, shared = (digits.load(name, root, 28, download=False)[0] for root in (digits_demo / name, digits_demo))
    assert torch.equal(own.images, shared.images)
    assert torch.equal(own.labels, shared.labels)


@pytest.mark.parametrize("alias", ["SynDigits", "syndigits", "synth", "syndigit"])
def test_syndigits_answers_to_all_its_names(alias, digits_demo):
    assert len(digits.load(alias, digits_demo, 28)[0]) == 100


def test_torchvisions_mnist_reader_finds_the_same(digits_demo):
    for ours, train in zip(digits.load("mnist", digits_demo, 28), (True, False), strict=True):
        theirs = datasets.MNIST(digits_demo / "mnist", train=train)
        assert torch.equal(ours.images, theirs.data.unsqueeze(1).expand(-1, 3, -1, -1))
        assert torch.equal(ours.labels, theirs.targets)


def test_torchvisions_svhn_reader_finds_the_same(digits_demo):
    folder = digits_demo / "svhn"

    class Reader(datasets.SVHN):
        split_list: ClassVar = {
            side: ["", f"{side}_32x32.mat", md5_of(folder / f"{side}_32x32.mat")] for side in ("train", "test")
        }

    for ours, split in zip(digits.load("svhn", folder, 32), ("train", "test"), strict=True):
        theirs = Reader(folder, split=split)
        assert torch.equal(ours.images, torch.from_numpy(theirs.data))
        assert ours.labels.tolist() == theirs.labels.tolist()
    assert 10 in scipy.io.loadmat(folder / "train_32x32.mat")["y"]


def test_mnistm_demo_is_the_pair_of_tensors_that_its_release_holds(digits_demo):
    file = digits_demo / "mnistm" / "MNISTM" / "processed" / "mnist_m_train.pt"
    images, labels = torch.load(file, weights_only=True)
    assert images.shape == (100, 28, 28, 3)
    assert images.dtype == torch.uint8
    train, _ = digits.load("mnistm", digits_demo, 28)
    assert torch.equal(train.images, images.permute(0, 3, 1, 2))
    assert torch.equal(train.labels, labels)


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw", "mnist"])
def test_mnist_is_found_packed_or_plain_wherever_it_is_kept(place, digits_demo, tmp_path):
    (tmp_path / "DEMO.txt").touch()
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(sorted((digits_demo / "mnist/MNIST/raw").iterdir())):
        if place and index % 2:
            shutil.copy(file, folder)
        else:
            (folder / file.name).with_suffix(".gz").write_bytes(gzip.compress(file.read_bytes()))
    digits_md5 = {path.name: md5_of(path) for path in folder.glob("*.gz")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "_MNIST_MD5", {**digits._MNIST_MD5, **digits_md5})
        train, _ = digits.load("mnist", tmp_path, 28, download=False)
    assert torch.equal(train.images, digits.load("mnist", digits_demo, 28)[0].images)


def test_mnistm_reads_the_folders_with_label_lists_too(digits_demo, tmp_path):
    (tmp_path / "DEMO.txt").touch()
    expected = digits.load("mnistm", digits_demo, 28)
    write_listed(tmp_path, [part.subset(range(20)) for part in expected])
    for read, whole in zip(digits.load("mnistm", tmp_path, 28, download=False), expected, strict=True):
        assert torch.equal(read.images, whole.images[:20])
        assert torch.equal(read.labels, whole.labels[:20])


def write_listed(root: Path, parts) -> None:
    for side, part in zip(("train", "test"), parts, strict=True):
        folder = root / f"mnist_m_{side}"
        folder.mkdir()
        lines = []
        for index, (image, label) in enumerate(zip(part.images, part.labels.tolist(), strict=True)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:08d}.png")
            lines.append(f"{index:08d}.png {label}\n")
        (root / f"mnist_m_{side}_labels.txt").write_text("".join(reversed(lines)))


def test_syndigits_reads_its_matlab_form_too(digits_demo, tmp_path):
    for side in ("train", "test"):
        shutil.copy(digits_demo / "svhn" / f"{side}_32x32.mat", tmp_path / f"synth_{side}_32x32.mat")
    train, _ = digits.load("syndigit", tmp_path, 32)
    assert torch.equal(train.images, digits.load("svhn", digits_demo, 32)[0].images)


def test_syndigits_images_may_differ_in_size_and_mode(digits_copy):
    file = sorted((digits_copy / "syndigit/imgs_train/3").iterdir())[0]
    Image.fromarray(np.full((50, 70), 200, np.uint8)).save(file)
    train, _ = digits.load("syndigit", digits_copy, 28)
    assert (train.images[train.labels == 3][0] == 200).all()


def test_the_demo_is_large_enough_for_a_point_to_mean_something():
    assert demo.TRAIN_IMAGES >= 700
    assert demo.TEST_IMAGES >= 1000


def test_source_and_target_are_made_of_different_digits(monkeypatch):
    drawn: dict[tuple[str, str], set[bytes]] = {}

    def recorded(half, side):
        seen = drawn.setdefault((half, side), set())
        place = demo.place
        monkeypatch.setattr(demo, "place", lambda ink, *where: seen.add(ink.tobytes()) or place(ink, *where))
        demo._handwritten(half, side, 0, lambda rng, ink, held_out: ink)
        monkeypatch.setattr(demo, "place", place)

    for half in ("first", "second"):
        for side in ("train", "test"):
            recorded(half, side)
    assert len(drawn["first", "train"]) > 700
    assert len(drawn["first", "test"]) == 360
    assert not drawn["first", "train"] & drawn["second", "train"]
    assert not (drawn["first", "train"] | drawn["second", "train"]) & drawn["first", "test"]
    assert drawn["first", "test"] == drawn["second", "test"]


@pytest.mark.parametrize("name", NAMES)
def test_the_demo_has_the_same_bytes_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 20)
    monkeypatch.setattr(demo, "TEST_IMAGES", 20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    folders = [demo.write(tmp_path / which, name) for which in ("one", "two")]
    assert torch.equal(before, torch.get_rng_state())
    loaded = [digits.load(name, folder, 28) for folder in folders]
    for one, two in zip(*loaded, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in folders]
    assert files[0] == files[1]


@pytest.mark.parametrize("draw", [glyphs.house_number, lambda rng, digit: glyphs.synthetic_digit(rng, digit, False)])
def test_a_printed_numeral_stands_out_from_what_it_stands_on(draw):
    for digit in range(10):
        picture = draw(np.random.default_rng(digit), digit)
        assert picture.shape == (32, 32, 3)
        assert picture.dtype == np.uint8
        assert picture.reshape(-1, 3).std(axis=0).max() > 10


def test_an_unknown_set_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(UserError, match=r"'usps'; expected one of mnist, mnistm, svhn, syndigit"):
        digits.load("usps", tmp_path, 28)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "ossci-datasets", "--demo"]),
        ("mnistm", ["mnist_m_train.pt.tar.gz", "liyxi/mnist-m", "--demo"]),
        ("svhn", ["train_32x32.mat", "housenumbers", "--demo"]),
        ("syndigit", ["imgs_train/0..9", "imgs_valid/0..9", "synth_train_32x32.mat", "--demo"]),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_missing_data_are_told_where_to_come_from(name, parts, download, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(digits, "_MNIST_MIRRORS", datasets.MNIST.mirrors[:1])
    with pytest.raises(UserError) as caught:
        digits.load(name, tmp_path, 28, download=download)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), *parts):
        assert part in message


def test_a_mirror_that_does_not_answer_is_passed_over(digits_demo, tmp_path, monkeypatch):
    served = tmp_path / "mirror"
    served.mkdir()
    for file in (digits_demo / "mnist/MNIST/raw").iterdir():
        (served / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    monkeypatch.setattr(digits, "_MNIST_MIRRORS", [(tmp_path / "nothing").as_uri() + "/", served.as_uri() + "/"])
    monkeypatch.setattr(digits, "_MNIST_MD5", {name: md5_of(served / name) for name in digits._MNIST_MD5})
    monkeypatch.setattr(digits, "_COUNTS", {})
    train, _ = digits.load("mnist", tmp_path / "data", 28)
    assert torch.equal(train.images, digits.load("mnist", digits_demo, 28)[0].images)
    assert "demo" not in train.name
    assert (tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte.gz").is_file()


def test_mnistm_is_fetched_and_unpacked_as_published(digits_demo, tmp_path, monkeypatch):
    served = tmp_path / "release"
    served.mkdir()
    for side in ("train", "test"):
        with tarfile.open(served / f"mnist_m_{side}.pt.tar.gz", "w:gz") as tar:
            tar.add(digits_demo / f"mnistm/MNISTM/processed/mnist_m_{side}.pt", f"mnist_m_{side}.pt")
    monkeypatch.setattr(digits, "_MNISTM_URL", served.as_uri())
    monkeypatch.setattr(digits, "_MNISTM_MD5", {name: md5_of(served / name) for name in digits._MNISTM_MD5})
    monkeypatch.setattr(digits, "_COUNTS", {})
    train, _ = digits.load("mnistm", tmp_path / "data", 28)
    assert torch.equal(train.images, digits.load("mnistm", digits_demo, 28)[0].images)
    assert {path.name for path in (tmp_path / "data/MNISTM/processed").iterdir()} == {
        "mnist_m_train.pt",
        "mnist_m_test.pt",
        ".lock",
    }


@pytest.mark.parametrize(("name", "reason"), [("mnist", "60000 + 10000"), ("mnistm", "59001 + 9001")])
def test_without_the_marker_the_published_counts_are_required(name, reason, digits_copy):
    (digits_copy / name / "DEMO.txt").unlink()
    with pytest.raises(UserError, match=r"holds 100 \+ 120 images") as caught:
        digits.load(name, digits_copy, 28, download=False)
    assert reason in str(caught.value)


def test_without_the_marker_the_published_checksums_are_required(digits_copy):
    (digits_copy / "svhn" / "DEMO.txt").unlink()
    with pytest.raises(UserError, match=r"train_32x32.mat is damaged: its md5 is .*e26dedcc434d2e4c54c9b2d4a06d8373"):
        digits.load("svhn", digits_copy, 28, download=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist/MNIST/raw/train-images-idx3-ubyte"),
        ("mnist", "mnist/MNIST/raw/t10k-labels-idx1-ubyte"),
        ("mnistm", "mnistm/MNISTM/processed/mnist_m_test.pt"),
        ("svhn", "svhn/train_32x32.mat"),
        ("syndigit", "syndigit/imgs_valid/7/0030.png"),
    ],
)
@pytest.mark.parametrize("damage", ["cut short", "text", "empty"])
def test_a_damaged_file_is_refused_by_name(name, file, damage, digits_copy):
    path = digits_copy / file
    if not path.exists():
        path = sorted(path.parent.iterdir())[0]
    content = path.read_bytes()
    path.write_bytes(
        {"cut short": content[: len(content) // 2], "text": b"<html>quota exceeded</html>", "empty": b""}[damage]
    )
    with pytest.raises(UserError, match=f"{path} is damaged") as caught:
        digits.load(name, digits_copy, 28, download=False)
    assert "\n" not in str(caught.value)


def test_a_torch_file_cannot_run_code(digits_copy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.mkdir, (tmp_path / "exploded",)

    torch.save((torch.zeros(1), Bomb()), digits_copy / "mnistm/MNISTM/processed/mnist_m_train.pt")
    with pytest.raises(UserError, match=r"mnist_m_train.pt is damaged"):
        digits.load("mnistm", digits_copy, 28)
    assert not (tmp_path / "exploded").exists()


def test_fewer_labels_than_images_are_refused(digits_copy, tmp_path):
    labels = digits_copy / "mnist/MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 5)) + bytes(5))
    with pytest.raises(UserError, match=f"{labels} is damaged: expected a label for each of the 100 images, found 5"):
        digits.load("mnist", digits_copy, 28)

    mat = digits_copy / "svhn/train_32x32.mat"
    content = scipy.io.loadmat(mat)
    scipy.io.savemat(mat, {"X": content["X"], "y": content["y"][:-1]})
    with pytest.raises(UserError, match=f"{mat} is damaged: expected a label for each of the 100 images, found 99"):
        digits.load("svhn", digits_copy, 28)

    (tmp_path / "DEMO.txt").touch()
    write_listed(tmp_path, [part.subset(range(5)) for part in digits.load("mnistm", digits_copy, 28)])
    listing = tmp_path / "mnist_m_test_labels.txt"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=f"{listing} is damaged: it has no label for 1 images.*00000004.png"):
        digits.load("mnistm", tmp_path, 28)


def test_a_missing_or_empty_class_is_refused_by_name(digits_copy):
    shutil.rmtree(digits_copy / "syndigit/imgs_train/4")
    with pytest.raises(UserError, match=r"imgs_train has no folder for class 4"):
        digits.load("syndigit", digits_copy, 28)
    (digits_copy / "syndigit/imgs_train/4").mkdir()
    with pytest.raises(UserError, match=r"imgs_train/4 holds no images"):
        digits.load("syndigit", digits_copy, 28)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist/MNIST/raw/t10k-labels-idx1-ubyte"),
        ("mnistm", "mnistm/MNISTM/processed/mnist_m_test.pt"),
        ("svhn", "svhn/test_32x32.mat"),
        ("syndigit", "syndigit/imgs_valid"),
    ],
)
def test_real_data_are_never_fetched_into_a_demo_folder(name, file, digits_copy, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("a download was tried"))
    path = digits_copy / file
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=f"{path} is missing"):
        digits.load(name, digits_copy, 28)


def test_published_addresses_and_checksums_are_torchvisions() -> None:
    assert list(digits._MNIST_MD5.items()) == [tuple(entry) for entry in datasets.MNIST.resources]
    assert set(digits._MNIST_MIRRORS) == set(datasets.MNIST.mirrors)
    for side in ("train", "test"):
        url, name, md5 = datasets.SVHN.split_list[side]
        assert (f"{digits._SVHN_URL}/{name}", digits._SVHN_MD5[name]) == (url, md5)
