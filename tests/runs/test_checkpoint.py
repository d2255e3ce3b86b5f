"""Checkpoint files: what is accepted, what is refused and how, and that saving never leaves half a file."""

import os
from pathlib import Path

import pytest
import torch

from common.config.naming import find_source
from common.config.options import Options, parse
from common.config.tasks import Task
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint

TASK = Task("resnet20", Path("/nonexistent"), "resnet20_quant", stem="res20")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model_best.pt"


def source_options(folder: Path, name: str = "res20_32bit/model_best.pt", task: Task = TASK, *words: str) -> Options:
    return parse(task, ["--source_dir", str(folder), "--source_file", name, "--bitW", "8", *words])


@pytest.mark.parametrize("wrap", [lambda s: {"state_dict_t": s}, lambda s: {"state_dict": s}, lambda s: s])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_published_form_loads(wrap, prefix: str, file: Path) -> None:
    torch.manual_seed(1)
    state = build_model("resnet20_quant").state_dict()
    checkpoint.save(wrap({prefix + key: value for key, value in state.items()}), file)
    torch.manual_seed(2)
    model = build_model("resnet20_quant", bitW=4, abitW=4)
    report, _ = checkpoint.load_weights(model, file)
    assert len(report.loaded) == 128
    assert report.missing == report.left_out == ()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_partial_file_says_what_it_did_not_have(file: Path) -> None:
    state = build_model("resnet20_quant").state_dict()
    del state["logit.bias"]
    checkpoint.save({"state_dict_t": {**state, "extra.weight": torch.zeros(1)}}, file)
    report, _ = checkpoint.load_weights(build_model("resnet20_quant"), file)
    text = "\n".join(report.lines(file))
    assert "not in the file, left as initialised: logit.bias" in text
    assert "in the file, not used: extra.weight" in text


def test_a_file_in_which_nothing_matches_is_refused(file: Path) -> None:
    checkpoint.save({"state_dict": {"foreign.weight": torch.zeros(3)}}, file)
    with pytest.raises(UserError, match=r"model_best.pt: only 0 of the network's 128 tensors"):
        checkpoint.load_weights(build_model("resnet20_quant"), file)


def test_a_wrong_shape_is_refused_with_both_shapes(file: Path) -> None:
    checkpoint.save(build_model("resnet20_quant", num_classes=100).state_dict(), file)
    with pytest.raises(UserError, match=r"logit.weight has shape \(100, 64\), this network needs \(10, 64\)"):
        checkpoint.load_weights(build_model("resnet20_quant"), file)


def test_truncated_foreign_and_empty_files_are_refused(file: Path) -> None:
    checkpoint.save({"state_dict_t": build_model("resnet20_quant").state_dict()}, file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], b"<html>quota exceeded</html>", b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"model_best.pt: not a complete PyTorch checkpoint"):
            checkpoint.read(file)
    with pytest.raises(UserError, match="there is no such file"):
        checkpoint.read(file.with_name("absent.pt"))


class _Evil:
    def __reduce__(self):
        return os.mkdir, (str(Path("executed")),)


def test_nothing_in_a_file_is_executed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    torch.save({"state_dict_t": _Evil()}, file)
    with pytest.raises(UserError):
        checkpoint.read(file)
    assert not Path("executed").exists()


def test_the_older_vgg2_layout_is_remapped(file: Path) -> None:
    state = build_model("MNISTmodel_quant").state_dict()
    older = {"feature.5": "feature.4", "feature.6": "feature.5"}
    moved = {
        older.get(key.rsplit(".", 1)[0], key.rsplit(".", 1)[0]) + "." + key.rsplit(".", 1)[1]: v
        for key, v in state.items()
    }
    checkpoint.save({"state_dict_t": moved}, file)
    torch.manual_seed(5)
    model = build_model("MNISTmodel_quant", bitW=1, abitW=1)
    checkpoint.load_weights(model, file)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_published_resnet50_files_with_fc_and_admm_entries_load(file: Path) -> None:
    state = build_model("resnet50_dann").state_dict()
    extra = {
        "feature.fc.weight": torch.zeros(1000, 2048),
        "feature.fc.bias": torch.zeros(1000),
        "feature.layer1.0.admm0.alterD": torch.zeros(28, 28),
        "feature.layer1.0.act_q3.opt.gamma": torch.zeros(28, 28),
    }
    checkpoint.save({"state_dict_t": {**state, **extra}}, file)
    report, _ = checkpoint.load_weights(build_model("resnet50_dann", bitW=4, abitW=4), file)
    assert len(report.loaded) == 322
    assert report.missing == ()


def test_saving_replaces_whole_files_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save({"value": torch.zeros(3)}, file)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"value": torch.ones(3)}, file)
    assert torch.equal(checkpoint.read(file)["value"], torch.zeros(3))
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("place", ["", "ours", "others", "apot_lsq"])
@pytest.mark.parametrize("inside", ["", "checkpoint"])
def test_the_source_file_is_found_under_every_published_prefix(place: str, inside: str, tmp_path: Path) -> None:
    path = tmp_path / "pretrained" / place / "res20_32bit" / inside / "model_best.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_source(source_options(tmp_path / "pretrained"), []) == path


def test_a_source_file_typed_alone_is_a_path_as_well(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    below = touch(tmp_path / "pretrained" / "float" / "checkpoint" / "last.pt")
    words = ["--source_file", "float/checkpoint/last.pt", "--bitW", "8"]
    assert find_source(parse(TASK, words), []).absolute() == below
    own = touch(tmp_path / "float" / "checkpoint" / "last.pt")
    assert find_source(parse(TASK, words), []).absolute() == own
    assert find_source(parse(TASK, [*words, "--source_dir", "pretrained"]), []).absolute() == below


def test_a_missing_path_says_that_it_was_looked_for_as_one_and_trains_its_job(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        find_source(parse(TASK, ["--source_file", "float/checkpoint/last.pt", "--bitW", "8"]), [])
    assert "looked for it as a path, and under pretrained" in str(raised.value)
    assert "--job_dir float " in str(raised.value)


def test_a_missing_source_file_says_where_it_looked_and_the_two_ways(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_source(source_options(tmp_path / "pretrained"), [tmp_path / "experiment" / "float"])
    text = str(raised.value)
    for part in (
        "res20_32bit/model_best.pt",
        str(tmp_path / "pretrained"),
        "experiment",
        "python tools/fetch_pretrained.py download --task resnet20",
        "drive.google.com",
        "--bitW 32",
    ):
        assert part in text
    assert "\n" not in text


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.mark.parametrize("variant", ["cdf_alignment", "daq_crp"])
def test_both_variants_of_a_cross_domain_task_find_the_one_file(variant: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "dslr_webcam/dw_32bit/model_best.pt"
    domains = {"src_data": "dslr", "tgt_data": "webcam"}
    folder = tmp_path / "dann_office" / variant
    task = Task("dann_office", folder, "resnet50_dann", "office", "dann", defaults=domains)
    path = touch(tmp_path / "dann_office" / "pretrained" / name)
    assert find_source(source_options(Path("pretrained"), name, task), []) == path


def test_the_published_float_densenet_is_found_by_its_own_name(tmp_path: Path) -> None:
    task = Task("densenet40", Path("/nonexistent"), "densenet_40_quant", stem="dense")
    path = touch(tmp_path / "dense_32bit" / "densenet_40.pt.tar")
    assert find_source(source_options(tmp_path, "dense_32bit/model_best.pt", task), []) == path


def test_a_demo_run_starts_from_the_demo_run_and_not_from_a_fetched_file(tmp_path: Path) -> None:
    fetched = touch(tmp_path / "pretrained" / "res20_32bit" / "model_best.pt")
    own = touch(tmp_path / "runs" / "res20_32bit" / "checkpoint" / "model_best.pt")
    for words, expected in (([], fetched), (["--demo"], own)):
        options = source_options(tmp_path / "pretrained", "res20_32bit/model_best.pt", TASK, *words)
        assert find_source(options, [tmp_path / "runs"]) == expected


def test_learned_scales_are_taken_over_only_by_the_same_method(file: Path) -> None:
    torch.manual_seed(0)
    trained = build_model("resnet20_quant", method="lsq", bitW=4, abitW=4)
    trained.train()(torch.randn(2, 3, 32, 32))
    steps = {key: value for key, value in trained.state_dict().items() if key.endswith("quantizer.scale")}
    config = {"method": "lsq", "bitW": 4, "abitW": 4}
    checkpoint.save({"state_dict_t": trained.state_dict(), "config": config}, file)

    same = build_model("resnet20_quant", method="lsq", bitW=4, abitW=4)
    checkpoint.load_weights(same, file, "lsq")
    assert all(torch.equal(same.state_dict()[key], value) for key, value in steps.items())

    other = build_model("resnet20_quant", method="llsq", bitW=4, abitW=4)
    checkpoint.load_weights(other, file, "llsq")
    assert not any(
        torch.equal(other.state_dict()[key], value) for key, value in steps.items() if key in other.state_dict()
    )

    narrower = build_model("resnet20_quant", method="lsq", bitW=2, abitW=2)
    checkpoint.load_weights(narrower, file, "lsq")
    key = next(key for key in steps if key.endswith("weight_quantizer.scale"))
    weight = trained.state_dict()[key.replace("weight_quantizer.scale", "weight")]
    torch.testing.assert_close(narrower.state_dict()[key], 2 * weight.abs().mean().reshape_as(steps[key]) / 1**0.5)
