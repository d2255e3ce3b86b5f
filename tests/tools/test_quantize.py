"""tools/quantize.py through its command line, on image folders, and what export, predict and evaluate make of its file."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.folder_batches import FolderBatches
from common.data.folders import read_domain
from common.deploy import packed
from common.deploy.restore import restore
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint
from tests.tools.entry import refused, type_in, words_of
from tools.deployed.images import prepare
from tools.evaluate import evaluate
from tools.export import export
from tools.predict import predict
from tools.quantize import quantize


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "photos"
    rng = np.random.default_rng(0)
    for name in ("bike", "mug", "pen"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def test_a_pretrained_classifier_is_quantized_reported_and_saved(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    floating = build_model("torchvision:mnasnet0_5", num_classes=3)
    torch.save(floating.state_dict(), tmp_path / "float.pth")
    words = [
        "--model",
        "torchvision:mnasnet0_5",
        "--weights",
        tmp_path / "float.pth",
        "--images",
        photos,
        "--img_size",
        32,
    ]
    words += ["--method", "lsq", "--bitW", 3, "--abitW", 4, "--calibrate", 2, "--batch_size", 4]
    status, output, errors = type_in("quantize", *words, "--out", tmp_path / "quantized.pt")
    assert status == 0, errors
    assert "quantized 52 of 52 convolutions" in output
    assert "left float: layers.8.0.layers.0: its input: can be negative" in output
    assert "top-1 float: " in output
    content = checkpoint.read(tmp_path / "quantized.pt")
    config = content["config"]
    assert (config["method"], config["bitW"], config["abitW"], config["classes"]) == (
        "lsq",
        3,
        4,
        ["bike", "mug", "pen"],
    )
    network = build_model(config["model"], config["method"], config["bitW"], config["abitW"], num_classes=3)
    network.load_state_dict(content["state_dict_t"])
    assert all(torch.equal(network.state_dict()[key], p) for key, p in floating.named_parameters())
    step = network.get_submodule("layers.0").weight_quantizer
    assert torch.equal(step.reference, step.initial_scale(floating.state_dict()["layers.0.weight"]).float()), (
        "of the weights given"
    )
    name = "layers.1.running_mean"
    assert not torch.equal(network.state_dict()[name], floating.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--model", "resnet18"], "--model: expected torchvision:NAME, timm:NAME or FILE.py:FUNCTION, not 'resnet18'"),
        (["--bitW", "four"], "--bitW: expected bits from 1 to 32, not 'four'"),
        (["--out", "."], "--out: expected a file to write, and . is a folder"),
        (["--images", "nowhere"], "no folder|no domain nowhere"),
        (["--weights", "missing.pth"], "missing.pth: there is no such file"),
        (["--bitsW", 4], r"unknown flag --bitsW; did you mean --bitW\?"),
    ],
)
def test_bad_flags_end_in_one_line(changes: list, text: str, photos: Path, tmp_path: Path, monkeypatch) -> None:
    flags = {"model": "torchvision:mnasnet0_5", "images": photos, "out": tmp_path / "q.pt", "img_size": 32}
    flags.pop(changes[0][2:], None)
    monkeypatch.chdir(tmp_path)
    assert re.search(text, refused("quantize", *words_of(**flags), *changes))
    assert not list(tmp_path.glob("*.pt"))


SIDE = 40


@pytest.fixture(scope="module")
def quantized(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "quantized.pt"
    name = "torchvision:resnet18"
    quantize(model=name, images=photos, out=path, img_size=SIDE, calibrate=2, batch_size=4)
    return path


@pytest.fixture(scope="module")
def shipped(quantized: Path) -> Path:
    path = quantized.with_name("q.safetensors")
    export(checkpoint=quantized, out=path)
    return path


def test_classes_image_size_and_preprocessing_travel_in_the_file(quantized: Path, shipped: Path, photos: Path) -> None:
    description = packed.load(shipped)[1]
    assert description == restore(quantized)[1]
    assert description.classes == ("bike", "mug", "pen")
    images = read_domain(photos.parent, photos.name)
    (measured, _) = next(iter(FolderBatches(image_list=images, batch_size=15, img_size=SIDE, train=False)))
    assert torch.equal(prepare([images.root / path for path in images.paths], description.preprocessing), measured)


def test_every_form_of_the_file_predicts_and_packed_never_disagrees(
    quantized: Path, shipped: Path, photos: Path, capsys: pytest.CaptureFixture
) -> None:
    export(checkpoint=quantized, out=quantized.with_name("q.onnx"), format="onnx")
    said = []
    for path in (quantized, shipped, quantized.with_name("q.onnx")):
        capsys.readouterr()
        predict(photos / "mug" / "0.png", model=path, top=3)
        said.append(capsys.readouterr().out.splitlines()[1])
        assert all(name in said[-1] for name in ("bike", "mug", "pen"))
    assert said[0] == said[1], "the ONNX file rounds in an order of its own"
    evaluate(model=shipped, against=quantized, images=photos)
    assert "0 of 15 predictions differ, largest logit difference 0\n" in capsys.readouterr().out


def test_a_packed_classifier_is_four_bits_a_weight(quantized: Path, shipped: Path) -> None:
    network, _, _ = restore(quantized)
    codes = sum(-(-m.weight.numel() // 2) for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    state = network.state_dict().values()
    floats = sum(4 * value.numel() for value in state if value.ndim in (1, 2))
    assert codes + floats <= shipped.stat().st_size <= 1.03 * (codes + floats) + 16 * 1024


def test_folders_are_told_by_name_where_some_classes_are_absent(
    shipped: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("mug", "pen"):
        (tmp_path / "some" / name).mkdir(parents=True)
        (tmp_path / "some" / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
    evaluate(model=shipped, images=tmp_path / "some")
    top1 = float(capsys.readouterr().out.split("top-1: ")[1].split()[0])
    network, description = packed.load(shipped)
    images = read_domain(tmp_path, "some")
    ((pixels, _),) = FolderBatches(image_list=images, batch_size=2, img_size=SIDE, train=False)
    answers = [description.classes[index] for index in network(pixels).argmax(1).tolist()]
    assert top1 == 100 * sum(a == b for a, b in zip(answers, ("mug", "pen"), strict=True)) / 2


def test_what_evaluation_cannot_know_is_refused_in_one_line(
    quantized: Path, shipped: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"q\.safetensors belongs to no task .* --images"):
        evaluate(model=shipped)
    with pytest.raises(UserError, match="--demo: has no meaning with --images"):
        evaluate(model=shipped, images=photos, demo=True)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name / "0.png").write_bytes((photos / "mug" / "0.png").read_bytes())
    with pytest.raises(UserError, match="cat, dog is no class of this network; expected folders among bike, mug, pen"):
        evaluate(model=shipped, images=tmp_path / "photos")
    state = checkpoint.read(quantized)["state_dict_t"]
    torch.save({"state_dict_t": state}, tmp_path / "bare.pt")
    (tmp_path / "short.pt").write_bytes(quantized.read_bytes()[:-1000])
    for name, typed, says in (
        ("bare.pt", {}, "type --model and --bitW"),
        ("bare.pt", {"model": "torchvision:resnet18", "bitW": 4}, "does not say the classes"),
        ("short.pt", {}, "not a complete PyTorch checkpoint"),
    ):
        with pytest.raises(UserError, match=says):
            export(checkpoint=tmp_path / name, out=tmp_path / "a.safetensors", **typed)
