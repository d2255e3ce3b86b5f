"""The real command lines around alignment files: made from a folder, applied by predict, evaluate and export, streams."""

import random
from pathlib import Path

import pytest
import safetensors
import torch
from PIL import Image

from common.data import cifar10
from common.deploy import packed
from common.runs import checkpoint
from tests.deploy.test_packed import network_of
from tests.tools.entry import refused, type_in

CLASSES = cifar10.CLASSES
PER_CLASS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, description = network_of("resnet20_quant", method="lsq", bitW=3, abitW=4)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    packed.save(network, description, path)
    return path


def write_photos(folder: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    draws = torch.Generator().manual_seed(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(PER_CLASS):
            pixels = torch.randint(90, 160, (32, 32, 3), generator=draws, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def said(tool: str, *words: object) -> str:
    status, out, err = type_in(tool, *words)
    assert status == 0, err
    return out


@pytest.fixture(scope="module")
def alignment(model: Path, photos: Path) -> Path:
    path = model.parent / "out" / "photos.alignment.safetensors"
    said("realign", "--model", model, "--images", photos, "--out", path, "--prior", 8)
    return path


def test_a_folder_becomes_a_file_and_the_accuracy_on_the_others_is_said(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.alignment.safetensors"
    lines = said("realign", "--model", model, "--images", photos, "--images_most", 12, "--out", out).splitlines()
    assert any(line.startswith("top-1 on the other 18 images: ") and "before" in line for line in lines)
    assert lines[-1] == f"{out}: 12 images of {photos}, prior 64; {out.stat().st_size:,} bytes"
    lines = said("realign", "--model", model, "--images", photos, "--out", out).splitlines()
    assert any(line.startswith("top-1 on the same 30 images: ") for line in lines)
    lines = said("realign", "--model", model, "--images", photos / "frog", "--out", out).splitlines()
    assert any("the same 3" in line for line in lines)


def test_labels_are_never_read(model: Path, photos: Path, alignment: Path, tmp_path: Path) -> None:
    """The same images under other classes' names, in another order, and without any, give the same bytes."""
    names = random.Random(0).sample(CLASSES, len(CLASSES))
    (tmp_path / "flat").mkdir()
    for index, (old, new) in enumerate(zip(CLASSES, names, strict=True)):
        (tmp_path / "scrambled" / new).mkdir(parents=True)
        for number in range(PER_CLASS):
            content = (photos / old / f"{number}.png").read_bytes()
            (tmp_path / "scrambled" / new / f"{9 - number}.png").write_bytes(content)
            (tmp_path / "flat" / f"{(7 * index) % 10}_{number}.png").write_bytes(content)
    expected = torch_bytes(alignment)
    for folder in ("scrambled", "flat"):
        out = tmp_path / f"{folder}.alignment.safetensors"
        printed = said("realign", "--model", model, "--images", tmp_path / folder, "--out", out, "--prior", 8)
        assert torch_bytes(out) == expected
        assert ("top-1" in printed) == (folder == "scrambled")


def torch_bytes(path: Path) -> dict[str, bytes]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def test_predict_and_evaluate_take_it(model: Path, photos: Path, alignment: Path) -> None:
    plain = said("predict", photos, "--model", model)
    moved = said("predict", photos, "--model", model, "--alignment", alignment)
    assert f"{alignment}: re-aligned by 30 images of {photos}, prior 8" in moved
    assert plain.splitlines()[-30:] != moved.splitlines()[-30:]
    printed = said("evaluate", "--model", model, "--alignment", alignment, "--against", model, "--images", photos)
    assert float(printed.split()[-1]) > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, _ = network_of("resnet20_quant", method="lsq", bitW=3, abitW=4)
    path = tmp_path_factory.mktemp("trained") / "model.pt"
    config = {"model": "resnet20_quant", "method": "lsq", "bitW": 3, "abitW": 4}
    checkpoint.save({"state_dict_t": network.state_dict(), "config": config}, path)
    return path


@pytest.mark.parametrize("format", ["packed", "onnx"])
def test_an_exported_file_is_the_realigned_checkpoint(
    format: str, trained: Path, photos: Path, alignment: Path, tmp_path: Path
) -> None:
    """One alignment serves the checkpoint, its packed file and its ONNX file: they are one network."""
    suffix = {"packed": ".safetensors", "onnx": ".onnx"}[format]
    folded, plain = tmp_path / f"folded{suffix}", tmp_path / f"plain{suffix}"
    export = ("export", "--checkpoint", trained, "--format", format)
    assert "re-aligned by 30 images" in said(*export, "--out", folded, "--alignment", alignment)
    said(*export, "--out", plain)
    for words in (("--model", plain, "--alignment", alignment), ("--model", trained, "--alignment", alignment)):
        printed = said("evaluate", *words, "--against", folded, "--images", photos)
        assert ": 0 of 30 predictions differ, largest logit difference " in printed
        assert float(printed.split()[-1]) <= (0 if format == "packed" else 0.1), "but for sums on a threshold"


def test_an_exported_program_is_realigned_too(trained: Path, alignment: Path, tmp_path: Path) -> None:
    for name, extra in (("a", []), ("b", ["--alignment", alignment])):
        said("export", "--checkpoint", trained, "--format", "pt2", "--out", tmp_path / f"{name}.pt2", *extra)
    first, second = (torch.export.load(tmp_path / f"{name}.pt2").state_dict for name in "ab")
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_stream_adapts_as_it_goes(model: Path, photos: Path) -> None:
    plain = said("predict", photos, "--model", model).splitlines()
    online = said("predict", photos, "--online", "--model", model, "--prior", 8).splitlines()
    still = said("predict", photos, "--online", "--model", model, "--prior", 1e9).splitlines()
    assert len(plain) == len(online) == len(still)
    assert online[1:] != plain[1:]
    assert still == plain
    status, out, err = type_in("predict", photos, "--online", "--model", model, "--prior", 8)
    assert (status, out.splitlines()) == (0, online)
    assert "% of the images are put into one class" in err, "an untrained network knows no other"


def test_what_cannot_be_is_refused_in_a_line(
    model: Path, trained: Path, photos: Path, alignment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.alignment.safetensors"
    words = ("--model", model, "--images", photos)
    assert "ends in .alignment.safetensors" in refused("realign", *words, "--out", tmp_path / "a.safetensors")
    assert "expected --images" in refused("realign", "--model", model, "--out", out)
    nowhere = ("--model", model, "--images", "nowhere", "--out", out)
    assert "there is no such file or folder" in refused("realign", *nowhere)
    assert "1 image without a prior" in refused(
        "realign", "--model", model, "--images", photos / "cat" / "0.png", "--prior", 0, "--out", out
    )
    assert "--prior" in refused("realign", *words, "--out", out, "--prior", -1)
    assert "--images_most" in refused("realign", *words, "--out", out, "--images_most", 0)
    assert not out.exists()
    onnx = tmp_path / "model.onnx"
    said("export", "--checkpoint", trained, "--format", "onnx", "--out", onnx)
    assert "no statistics to move here" in refused("realign", "--model", onnx, "--images", photos, "--out", out)
    assert "--online" in refused("predict", photos, "--online", "--model", onnx)
    other = ("export", "--checkpoint", trained, "--bitW", 2, "--out", tmp_path / "b.safetensors")
    assert "of another network" in refused(*other, "--alignment", alignment)
    assert not (tmp_path / "b.safetensors").exists()
    line = refused("predict", photos, "--model", model, "--alignment", model)
    assert "a packed network, but not an alignment file" in line
