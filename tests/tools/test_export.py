"""A run's checkpoint exported, evaluated against itself and asked about single images, through the tools' own functions."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.tasks import Task
from common.data import cifar10
from common.data.demo import cifar10 as demo_cifar10
from common.data.demo.folder import build_once
from common.deploy import packed
from common.deploy.description import Description, describe
from common.deploy.formats import FORMATS
from common.deploy.restore import restore
from common.engine.program import run
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint
from tests.conftest import REPOSITORY, fill_by_name
from tests.tools.entry import refused, words_of
from tools.deployed.images import prepare
from tools.evaluate import evaluate
from tools.export import export
from tools.parity import parity
from tools.predict import predict

TEST_IMAGES = 40


def fill(folder: Path) -> None:
    """CIFAR-10's files with a few images of noise."""
    rng = np.random.default_rng(0)
    for name, count in (*((name, 8) for name in cifar10.TRAIN_BATCHES), (cifar10.TEST_BATCH, TEST_IMAGES)):
        images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        demo_cifar10._write_batch(folder / name, "noise", images, np.arange(count) % 10)
    meta = {"num_cases_per_batch": 8, "label_names": list(demo_cifar10.CLASSES), "num_vis": 3072}
    (folder / cifar10.META).write_bytes(demo_cifar10.python2_pickle(meta))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    build_once(root / "demo" / "cifar10" / cifar10.FOLDER, demo_cifar10.ABOUT, fill)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The checkpoint of a real run, by a method with learned scales."""
    job = tmp_path_factory.mktemp("job")
    flags = f"--demo --data_dir {data} --job_dir {job} --method lsq --bitW 3 --abitW 4 --pretrained no --num_epochs 1"
    words = [*shlex.split(flags), "--train_batch_size", "20", "--device", "cpu"]
    run(Task("resnet20", REPOSITORY, "resnet20_quant", stem="res20"), words)
    return job / "checkpoint" / "model_best.pt"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    path = trained.parent / "out" / "model.safetensors"
    export(checkpoint=trained, out=path)
    return path


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


def test_bits_and_method_come_from_the_run(exported: Path) -> None:
    network, description = packed.load(exported)
    assert (description.scheme["method"], description.scheme["bitW"], description.scheme["abitW"]) == ("lsq", 3, 4)
    assert description.demo
    assert description.classes == demo_cifar10.CLASSES
    assert len(network.layers[0].conv0.weight.unique()) <= 8


def test_a_packed_file_never_disagrees_with_its_checkpoint(
    trained: Path, exported: Path, data: Path, said: Said
) -> None:
    evaluate(model=exported, against=trained, demo=True, data_dir=data)
    lines = said().splitlines()
    assert f"0 of {TEST_IMAGES} predictions differ, largest logit difference 0" in lines[-1]
    top1 = [line.split("top-1: ")[1].split()[0] for line in lines if "top-1" in line]
    assert len(top1) == 2
    assert top1[0] == top1[1]
    assert all("demo" in line for line in lines if "top-1" in line or "differ" in line)


@pytest.mark.parametrize("format", ["packed", "onnx"])
def test_an_export_says_how_far_it_is_from_its_network(
    format: str, trained: Path, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / f"file{FORMATS[format].suffix}")
    export(checkpoint=str(trained), out=out, format=format)
    engine = {"packed": "torch", "onnx": "onnxruntime"}[format]
    (line,) = [line for line in said().splitlines() if "logits" in line]
    assert line.startswith(f"{engine} from the file: largest difference of logits ")
    if format == "packed":
        assert "logits 0, their" in line
        return
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export(checkpoint=str(trained), out=out, format=format)
    assert "warning: not compared with the network it was made from: onnxruntime is not installed" in said()


def test_files_that_disagree_are_told_apart(
    trained: Path, exported: Path, data: Path, said: Said, tmp_path: Path
) -> None:
    export(checkpoint=trained, out=tmp_path / "two.safetensors", method="ours", bitW=2)
    assert "note: trained with --bitW 3, taken with --bitW 2" in said()
    evaluate(model=exported, against=tmp_path / "two.safetensors", demo=True, data_dir=data)
    assert float(said().split()[-1]) > 0


def test_an_image_file_gets_the_class_that_evaluation_gives_its_pixels(
    exported: Path, data: Path, said: Said, tmp_path: Path
) -> None:
    _, test = cifar10.load(data / "demo" / "cifar10")
    pixels = test.images[:3]
    (tmp_path / "below").mkdir()
    for index, name in enumerate(("0.png", "1.bmp", "below/2.tiff")):
        Image.fromarray(pixels[index].permute(1, 2, 0).numpy()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    predict(tmp_path, model=exported, top=10)
    first, *lines = said().splitlines()
    assert "demo" in first
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (cifar10.MEAN, cifar10.STD))
    probabilities = packed.load(exported)[0]((pixels / 255 - mean) / std).softmax(1)
    for line, row in zip(lines, probabilities, strict=True):
        shares = dict(part.rsplit(" ", 2)[:2] for part in line.split(": ", 1)[1].split(", "))
        assert set(shares) == set(demo_cifar10.CLASSES)
        for name, share in zip(demo_cifar10.CLASSES, row.tolist(), strict=True):
            assert float(shares[name]) == pytest.approx(100 * share, abs=0.051)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "CMYK"])
def test_any_kind_of_image_is_prepared_as_in_evaluation(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.tiff"
    Image.new(mode, (50, 41)).save(path)
    how = describe({"model": "resnet50_dsan", "img_size": 28, "bitW": 4}, 31).preprocessing
    assert (how["resize"], how["crop"]) == (32, 28)
    assert prepare([path], how).shape == (1, 3, 28, 28)


def test_an_onnx_file_is_told_from_its_checkpoint_by_rounding_alone(
    trained: Path, data: Path, tmp_path: Path, said: Said
) -> None:
    state = fill_by_name(build_model("resnet20_quant", bitW=2, abitW=2)).state_dict()  # no sum on a threshold
    torch.save({"state_dict_t": state}, tmp_path / "ours.pt")
    typed = {"model": "resnet20_quant", "method": "ours", "bitW": 2, "abitW": 2}
    for name, format in (("ours.onnx", "onnx"), ("ours.safetensors", "packed")):
        export(checkpoint=tmp_path / "ours.pt", out=tmp_path / name, format=format, **typed)
    evaluate(model=tmp_path / "ours.onnx", against=tmp_path / "ours.safetensors", demo=True, data_dir=data)
    assert f"0 of {TEST_IMAGES} predictions differ" in said()
    export(checkpoint=trained, out=tmp_path / "lsq.onnx", format="onnx")
    evaluate(model=tmp_path / "lsq.onnx", against=trained, demo=True, data_dir=data)
    differ = int(said().splitlines()[-1].split(": ")[1].split()[0])
    assert differ <= 2, "a code on a threshold may turn an image of noise over, not more"


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of parity's table by form."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[1:]}


@pytest.mark.parametrize(("format", "suffix"), [("onnx-int8", ".onnx"), ("openvino", ".xml")])
def test_an_integer_graph_is_written_compared_and_evaluated(
    format: str, suffix: str, trained: Path, data: Path, said: Said, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    export(checkpoint=trained, out=path, format=format)
    report = said()
    assert "from the file: " in report
    bytes_written = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert f"\n{bytes_written:,} bytes, " in report
    assert all(str(file) in report for file in tmp_path.iterdir())
    evaluate(model=path, against=trained, fast=True, demo=True, data_dir=data)
    differ, _, _ = said().splitlines()[-1].partition(" predictions differ")
    assert int(differ.split(": ")[1].split()[0]) <= 1


def test_every_form_of_a_run_is_compared_with_it(trained: Path, data: Path, said: Said, tmp_path: Path) -> None:
    lines = tmp_path / "parity.jsonl"
    lines.write_text('{"network": "another"}\n')
    for _ in range(2):  # the second time in the place of the first
        parity(checkpoint=trained, data_dir=data, layer_images=2, lines=lines)
        text = said()
    other, line = map(json.loads, lines.read_text().splitlines())
    assert other == {"network": "another"}
    assert [line[key] for key in ("network", "method", "bits", "demo", "images")] == [
        *("resnet20_quant", "lsq", [3, 4], True, TEST_IMAGES)
    ]
    assert [f"{form['same']:.2f}" for form in line["forms"].values()] == [row[1] for row in rows_of(text).values()]
    assert line["absent"].keys() == {"integer"}
    rows = rows_of(text)
    assert f"{TEST_IMAGES} demo images of test" in text
    assert "no integer form: add: adds values of which one is not quantized" in text
    assert rows.keys() == {"fake-quantized", "packed", "ONNX", "ONNX int8", "torch.export"}
    for exact in ("packed", "torch.export"):
        assert rows[exact][1:3] == ["100.00", "0"]
    assert rows["packed"][3].startswith("0 ")
    assert all(cells[5].startswith("0 of ") for cells in rows.values() if cells[5])


def test_a_packed_network_with_a_discriminator_is_compared_with_what_it_was(tmp_path: Path, said: Said) -> None:
    state = fill_by_name(build_model("MNISTmodel_quant", bitW=4, abitW=4)).state_dict()
    torch.save({"state_dict_t": state}, tmp_path / "ours.pt")
    export(checkpoint=tmp_path / "ours.pt", out=tmp_path / "ours.safetensors", model="MNISTmodel_quant", bitW=4)
    assert "torch from the file: largest difference of logits 0" in said()


def test_a_digits_network_of_ours_has_all_forms(demo_data: Callable[[], Path], tmp_path: Path, said: Said) -> None:
    state = fill_by_name(build_model("MNISTmodel_quant", bitW=4, abitW=4)).state_dict()
    torch.save({"state_dict_t": state}, tmp_path / "ours.pt")
    words = {"model": "MNISTmodel_quant", "bitW": 4, "demo": True, "data_dir": demo_data()}
    parity(
        checkpoint=tmp_path / "ours.pt",
        src_data="mnist",
        tgt_data="mnistm",
        images=20,
        layer_images=2,
        fast=True,
        **words,
    )
    rows = rows_of(said())
    assert list(rows) == ["fake-quantized", "packed", "integer", "fast (OpenVINO)", "ONNX", "ONNX int8", "torch.export"]
    assert all(float(cells[1]) >= 99 for cells in rows.values())
    assert all(cells[5].startswith("0 of ") for cells in rows.values() if cells[5])


def test_a_torch_export_program_is_written_but_never_opened(trained: Path, tmp_path: Path, said: Said) -> None:
    path = tmp_path / "lsq.pt2"
    export(checkpoint=trained, out=path, format="pt2")
    assert str(REPOSITORY).encode() not in path.read_bytes(), "a file to ship names no folder of this machine"
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extra = {"network": ""}
    program = torch.export.load(path, extra_files=extra)
    network = restore(trained)[0]
    assert Description.from_json(extra["network"]).scheme["method"] == "lsq"
    with torch.no_grad():
        assert torch.equal(program.module()(x), network(x))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for opening in (lambda: evaluate(model=path), lambda: predict(tmp_path / "a.png", model=path)):
        with pytest.raises(UserError, match="may run what it holds"):
            opening()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"out": "a.safetensors"}, "expected --checkpoint"),
        ({"checkpoint": "TRAINED"}, "expected --out"),
        ({"checkpoint": "none.pt", "out": "a.safetensors"}, "no such file"),
        ({"checkpoint": "none.pt", "out": "a.pt"}, ".safetensors"),
        ({"checkpoint": "a.safetensors", "out": "a.safetensors"}, "already exported"),
        (
            {"checkpoint": "none.pt", "out": "a.safetensors", "format": "tflite"},
            "--format: expected one of packed, onnx, onnx-int8, openvino, qonnx, pt2, not 'tflite'",
        ),
        ({"checkpoint": "none.pt", "out": "a.safetensors", "bitz": 4}, "unknown flag --bitz; did you mean --bitW?"),
        ({"checkpoint": "TRAINED", "out": "a.safetensors", "bitW": "four"}, "--bitW"),
        ({"checkpoint": "TRAINED", "out": "a.safetensors", "bitW": 1}, "method lsq defines"),
        ({"checkpoint": "TRAINED", "out": "a.safetensors", "model": "resnet56_quant"}, "another model"),
        ({"checkpoint": "TRAINED", "out": "a.safetensors", "model": "MNISTmodel_quant"}, "classifier.6.bias"),
        ({"checkpoint": "TRAINED", "out": "a.safetensors", "abitW": 2}, "never set"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_what_cannot_be_exported_is_refused(
    words: dict, says: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = {key: trained if value == "TRAINED" else value for key, value in words.items()}
    assert says in refused("export", *words_of(**typed))
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_configuration_needs_typed_ones(trained: Path, tmp_path: Path) -> None:
    bare, out = tmp_path / "bare.pt", tmp_path / "bare.safetensors"
    weights = checkpoint.read(trained)["state_dict_t"]
    checkpoint.save({"state_dict": {k: v for k, v in weights.items() if "quantizer" not in k}}, bare)
    with pytest.raises(UserError, match="--model and --bitW"):
        export(checkpoint=bare, out=out)
    export(checkpoint=bare, out=out, model="resnet20_quant", bitW=4)
    assert packed.load(out)[1].scheme["abitW"] == 4
    del weights["bn.running_mean"]
    checkpoint.save({"state_dict": weights}, bare)
    with pytest.raises(UserError, match=r"bn\.running_mean .* not in it"):
        export(checkpoint=bare, out=out, model="resnet20_quant", bitW=4)


@pytest.mark.parametrize("forged", [{"act_range": "wide"}, {"bitW": None}, {"model": ["resnet20_quant"]}])
def test_a_configuration_that_no_network_has_is_one_line(trained: Path, tmp_path: Path, forged: dict) -> None:
    content = torch.load(trained, weights_only=True)
    content["config"] |= forged
    torch.save(content, tmp_path / "forged.pt")
    with pytest.raises(UserError) as error:
        restore(tmp_path / "forged.pt")
    assert "\n" not in str(error.value)


def test_files_of_different_tasks_are_not_compared(exported: Path, tmp_path: Path) -> None:
    description = describe({"model": "MNISTmodel_quant", "bitW": 4, "abitW": 4}, 10)
    packed.save(description.build(), description, tmp_path / "digits.safetensors")
    with pytest.raises(UserError, match=r"has task resnet20, .* dann_digits"):
        evaluate(model=exported, against=tmp_path / "digits.safetensors", demo=True)
    with pytest.raises(UserError, match="--src_data and --tgt_data"):
        evaluate(model=tmp_path / "digits.safetensors", demo=True)
    with pytest.raises(UserError, match="unknown flag --src_data"):
        evaluate(model=exported, demo=True, src_data="mnist")


def test_an_onnx_file_without_onnxruntime_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"onnxruntime is not installed; .*\[deploy\]"):
        predict(tmp_path / "a.png", model=tmp_path / "a.onnx")


@pytest.mark.parametrize(("words", "says"), [(["none.png"], "no such file"), ([], "IMAGE"), (["."], "no images")])
def test_images_that_are_not_there_are_refused(
    words: list[str], says: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused("predict", *words, "--model", exported)


def test_on_the_command_line_a_fault_is_one_line_and_status_2(exported: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(exported.read_bytes()[:-100])
    command = [sys.executable, str(REPOSITORY / "tools" / "predict.py"), "007.png", "--model", str(damaged)]
    Image.new("RGB", (4, 4)).save(tmp_path / "007.png")
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "not a complete safetensors file" in result.stderr
