"""Networks of a user's file in the programs: trained, kept with their file's digest, rebuilt, and never run unasked."""

import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.config.options import parse
from common.data.folder_batches import FolderBatches
from common.data.folders import ImageList
from common.data.sharding import Share
from common.data.tensors import TensorBatches
from common.deploy import packed
from common.deploy.description import describe
from common.deploy.files import open_file
from common.deploy.restore import restore
from common.errors import UserError
from common.machine.acceleration import convolutions
from common.models import build_model
from common.models.adapted import AdaptedNetwork, without_classifier
from common.runs.start import check_last_batch
from tests.engine.synthetic import TASKS, Lab, images
from tests.tools.entry import refused, type_in

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def net(num_classes=7):
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*stem, Block(), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class Named(nn.Module):  # its parts are called as methods of networks here are
    def __init__(self):
        super().__init__()
        self.features, self.backbone, self.classify = net()[:3], net()[3:6], nn.Sequential(nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        return self.classify(self.backbone(self.features(x)))


def named():
    return Named()


def fixed():
    return net(4)


def vector(num_classes=7):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, num_classes)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *head)


def broken():
    raise RuntimeError("no weights")


def text():
    return "a network"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(NETWORK)
    return path


@pytest.mark.parametrize("task", ["single", "office"])
def test_a_network_of_a_file_has_the_classes_of_the_data_and_is_rebuilt_to_the_same_logits(
    task: str, file: Path, lab: Lab
) -> None:
    words = ["--model", f"{file}:net", "--num_epochs", 1, "--pretrained", "no"]
    summary = lab.run(task, *words, "--bitW", 4, *(["--backbone_weights", "imagenet"] if task == "office" else []))
    assert summary["model"] == f"{file}:net"
    content = lab.checkpoint()
    assert content["config"]["num_classes"] == 4
    assert content["config"]["classes"] == ["0", "1", "2", "3"]
    assert len(content["config"]["file_digest"]) == 64
    network, description, notes = restore(lab.folder / "job/checkpoint/last.pt", model=f"{file}:net")
    assert not [note for note in notes if "changed" in note]
    assert description.classes == ("0", "1", "2", "3")
    x = torch.randn(3, 3, 16, 16)
    trained = lab.trainer.network.eval()
    with torch.no_grad():
        assert torch.equal(network(x), trained(x))


@pytest.mark.parametrize("bits", [32, 4])
def test_parts_may_be_called_as_methods_of_networks_here(bits: int, file: Path, lab: Lab) -> None:
    """As `features` of torchvision's networks."""
    summary = lab.run("single", "--model", f"{file}:named", "--num_epochs", 1, "--bitW", bits, "--pretrained", "no")
    assert summary["model"] == f"{file}:named"
    assert convolutions(lab.trainer.network) is lab.trainer.network


def test_a_function_without_num_classes_is_called_without(file: Path, lab: Lab) -> None:
    lab.run("single", "--model", f"{file}:fixed", "--num_epochs", 1)
    assert lab.checkpoint()["state_dict_t"]["7.weight"].shape == (4, 8)


def test_the_code_of_a_file_is_run_only_when_its_name_is_typed(file: Path, lab: Lab, tmp_path: Path) -> None:
    lab.run("single", "--model", f"{file}:net", "--num_epochs", 1, "--bitW", 4, "--pretrained", "no")
    checkpoint, packed = lab.folder / "job/checkpoint/last.pt", tmp_path / "net.safetensors"
    status, _, errors = type_in("export", "--checkpoint", checkpoint, "--out", packed, "--model", f"{file}:net")
    assert status == 0, errors
    file.write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n{NETWORK}")
    for path in (checkpoint, packed):
        with pytest.raises(UserError, match="code that is not run because a file says so; type it"):
            open_file(path)
    assert not (tmp_path / "was_run").exists()
    assert open_file(packed, model=f"{file}:net").description.model == f"{file}:net"
    assert (tmp_path / "was_run").exists(), "typed, it is run"


def test_a_file_that_changed_since_the_training_is_said_so(file: Path, lab: Lab) -> None:
    words = ["--model", f"{file}:net", "--pretrained", "no", "--bitW", 4]
    lab.run("single", *words, "--num_epochs", 1)
    file.write_text(NETWORK + "\n# edited\n")
    _, _, notes = restore(lab.folder / "job/checkpoint/last.pt", model=f"{file}:net")
    assert notes == [f"note: {file} has changed since the network was trained"]
    lab.run("single", *words, "--num_epochs", 2, "--resume", lab.folder / "job/checkpoint/last.pt", job="longer")
    assert f"warning: {file} has changed" in (lab.folder / "longer/logger.log").read_text()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("torchvision:resnet", "expected one of alexnet, "),
        ("nothing", "expected one of resnet20_quant, .* or FILE.py:FUNCTION"),
        ("{file}:other", "the file has no such function"),
        ("{file}:broken", r"broken failed \(RuntimeError: no weights\)"),
        ("{file}:text", "text returned a str; expected a torch module"),
        ("missing.py:net", "missing.py.*there is no such file"),
    ],
)
@pytest.mark.parametrize("task", ["single", "office"])
def test_a_wrong_name_is_refused_in_one_line_before_the_folder_is_made(
    task: str, model: str, expected: str, file: Path, lab: Lab
) -> None:
    with pytest.raises(UserError, match=expected) as refused:
        lab.run(task, "--model", model.format(file=file), "--num_epochs", 1)
    assert "\n" not in str(refused.value)
    assert not (lab.folder / "job/checkpoint").exists()


def test_the_backbone_keeps_the_weights_that_the_function_gives_it(file: Path, lab: Lab) -> None:
    file.write_text(
        NETWORK + "\n\ndef ready():\n    n = net(4)\n    nn.init.constant_(n[0].weight, 0.125)\n    return n\n"
    )
    words = ["--model", f"{file}:ready", "--num_epochs", 1, "--lr", 1e-30, "--weight_decay", 0]
    lab.run("office", *words)
    state = lab.checkpoint()["state_dict_t"]
    assert state["feature.0.weight"].unique().tolist() == [0.125]
    assert state["classifier.weight"].shape == (4, 8), "the head is that of the domains' classes"
    assert "backbone: the weights that" in (lab.folder / "job/logger.log").read_text()


def test_relations_are_preserved_where_residual_branches_end_and_the_log_names_them(file: Path, lab: Lab) -> None:
    words = ["--model", f"{file}:net", "--num_epochs", 1, "--bitW", 4, "--pretrained", "no"]
    summary = lab.run("digits", *words)
    assert "relations are preserved at feature.act_quantizers._3_norm" in (lab.folder / "job/logger.log").read_text()
    assert set(summary["relation_shift"]["layers"])
    assert summary["crp"] is True


@pytest.mark.parametrize(("objective", "width"), [("dann", 8), ("dsan", 256)])
def test_the_head_has_the_width_that_a_dry_run_finds(objective: str, width: int, file: Path) -> None:
    from common.adaptation import OBJECTIVES

    bottleneck = OBJECTIVES[objective].bottleneck
    network = build_model(f"{file}:net", num_classes=5, adapts=True, img_size=16, bottleneck=bottleneck)
    assert isinstance(network, AdaptedNetwork)
    assert network.feature_width == width
    assert network.classifier.weight.shape == (5, width)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_the_tools_export_evaluate_and_predict_with_it(file: Path, lab: Lab, tmp_path: Path) -> None:
    from PIL import Image

    lab.run("office", "--model", f"{file}:net", "--num_epochs", 1, "--bitW", 4, "--pretrained", "no")
    checkpoint, packed = lab.folder / "job/checkpoint/last.pt", tmp_path / "net.safetensors"
    model = f"{file}:net"
    assert type_in("export", "--checkpoint", checkpoint, "--out", packed, "--model", model)[0] == 0
    status, out, errors = type_in(
        *("evaluate", "--model", packed, "--network", model, "--against", checkpoint, "--eval_batch_size", 7)
    )
    assert status == 0, errors
    assert "0 of 20 predictions differ, largest logit difference 0" in out
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    status, out, errors = type_in("predict", "--model", packed, "--network", model, tmp_path / "photo.png")
    assert status == 0, errors
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'photo.png'}: ")
    assert "type it: --network" in refused("predict", "--model", packed, tmp_path / "photo.png")


def test_a_file_of_a_network_that_brings_weights_is_read_without_warnings(file: Path, tmp_path: Path) -> None:
    torch.save(build_model(f"{file}:net", num_classes=4).state_dict(), tmp_path / "weights.pt")
    load = f"torch.load({str(tmp_path / 'weights.pt')!r}, weights_only=True, map_location='cpu')"
    file.write_text(f"{NETWORK}\n\ndef loaded():\n    n = net(4)\n    n.load_state_dict({load})\n    return n\n")
    model, path = f"{file}:loaded", tmp_path / "net.safetensors"
    packed.save(build_model(model, bitW=4, num_classes=4), describe({"model": model, "bitW": 4}, 4), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed.load(path, model)


@pytest.mark.parametrize("select", ["entropy", "im", "snd"])
def test_the_best_epoch_by_a_criterion_without_labels_is_where_it_is_greatest(select: str, lab: Lab) -> None:
    lab.small = True
    summary = lab.run("digits", "--num_epochs", 3, "--lr", 0.05, "--select", select)
    rows = [json.loads(line) for line in (lab.folder / "job/metrics.jsonl").read_text().splitlines()]
    assert all({"entropy", "im", "snd"} <= row["target"].keys() for row in rows)
    values = [row["target"][select] for row in rows]
    assert summary["best"]["epoch"] == values.index(max(values))
    assert summary["selected_by"] == select


@pytest.mark.parametrize("task", ["single", "office"])
def test_quant_linear_quantizes_every_layer_and_files_rebuild_it(
    task: str, file: Path, lab: Lab, tmp_path: Path
) -> None:
    model = f"{file}:net"
    words = ["--model", model, "--num_epochs", 1, "--bitW", 4, "--pretrained", "no"]
    without, summary = (lab.run(task, *words, *more, job=f"job{len(more)}") for more in ((), ("--quant_linear",)))
    head = "classifier" if task == "office" else "7"
    prefix = "feature." if task == "office" else ""
    assert {f"{prefix}4", head} <= without["coverage"]["left_float"].keys()
    assert set(summary["coverage"]["left_float"]) <= {"classifier"}, "the head that is put on stays float"
    checkpoint = lab.folder / "job1/checkpoint/last.pt"
    assert lab.checkpoint(job="job1")["config"]["quant_linear"] is True
    network, description, _ = restore(checkpoint, model=model)
    x = torch.randn(2, *description.image_shape)
    engines = {"packed": "torch", "onnx": "onnxruntime"}
    for name in ("net.safetensors", "net.onnx"):
        form = "onnx" if name.endswith("onnx") else "packed"
        status, out, errors = type_in(
            *("export", "--checkpoint", checkpoint, "--out", tmp_path / name, "--format", form, "--model", model)
        )
        assert status == 0, errors
        assert [line.split(": ")[0] for line in out.splitlines()[2:4]] == [
            "quantized",
            f"{engines[form]} from the file",
        ]
        found = open_file(tmp_path / name, model=model)
        assert found.description.arguments["quant_linear"] is True
        with torch.no_grad():
            torch.testing.assert_close(found.logits(x), network(x), rtol=0, atol=0 if form == "packed" else 1e-4)


def test_a_network_of_the_paper_keeps_its_layers(lab: Lab) -> None:
    with pytest.raises(UserError, match="--quant_linear: resnet20_quant keeps the layers of the paper"):
        lab.run("single", "--quant_linear")


def test_the_end_of_a_run_says_what_stayed_float_and_names_it_on_request(file: Path, lab: Lab) -> None:
    words = ["--model", f"{file}:net", "--num_epochs", 1, "--bitW", 4, "--pretrained", "no"]
    summary = lab.run("single", *words, "--float_names")
    covered = summary["coverage"]
    assert (covered["parameters"], covered["quantized_parameters"]) == (444, 3 * 9 * 8 + 8 * 9)
    log = (lab.folder / "job/logger.log").read_text()
    assert "quantized: 64.9 % of 444 parameters" in log
    assert "left float: 4: no BatchNorm behind it" in log
    assert "left float: 7: a Linear" in log
    lab.run("single", *words, job="plain")
    assert "left float:" not in (lab.folder / "plain/logger.log").read_text()


@pytest.mark.parametrize("kind", ["tensors", "folder"])
@pytest.mark.parametrize(
    ("samples", "processes", "words", "refused"),
    [
        (9, 1, [], True),
        (10, 2, [], True),
        (10, 1, [], False),
        (9, 2, [], False),  # the one that is left is left out
        (9, 2, ["--reestimate", "2"], True),  # which takes it
        (12, 2, [], False),
    ],
)
def test_a_last_batch_of_one_image_is_refused_before_training(
    kind: str, samples: int, processes: int, words: list[str], refused: bool, file: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "share": Share(0, processes)}
    if kind == "tensors":
        batches: Any = TensorBatches(image_set=images("some", samples), mean=0.5, std=0.5, shuffle=True, **settings)
    else:
        listed = ImageList(tmp_path, tuple(map(str, range(samples))), (0,) * samples, ("a", "b"), "train")
        batches = FolderBatches(image_list=listed, train=True, img_size=16, **settings)
    options = parse(TASKS["single"], ["--model", f"{file}:vector", "--train_batch_size", "8", *words])
    options = options.replaced(img_size=16)
    with pytest.raises(UserError, match=f"the last of {samples} by --train_batch_size 8") if refused else nullcontext():
        check_last_batch(options, batches)


class TwoUses(nn.Module):
    """A network whose last layer also does something else."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body, self.head = nn.Linear(12, 12), nn.Linear(12, 12)
        self.alias = self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x.flatten(1))
        if self.how == "called twice":
            x = self.head(x).relu()
        if self.how == "called by another name":
            x = self.alias(x).relu()
        if self.how == "its weight is read":
            x = x @ self.head.weight
        return self.head(x)


@pytest.mark.parametrize("how", ["called twice", "called by another name", "its weight is read"])
def test_a_classifier_with_another_use_is_not_taken_off(how: str) -> None:
    network = TwoUses(how)
    with pytest.raises(UserError, match="its classifier head is used 2 times") as refused:
        without_classifier(network)
    assert "\n" not in str(refused.value)
    assert isinstance(network.head, nn.Linear)
    assert isinstance(without_classifier(TwoUses("once")).head, nn.Identity)
