"""Single-domain runs through the real command line: the README's command, resume, kill -9, faults."""

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from common.models import build_model
from tests.conftest import readme_command, refusal, refusal_line, run, same_weights, start, weights

RESNET20 = "single_domain/resnet20"
README = readme_command('--source_file "res20_32bit')


@pytest.fixture
def job(tmp_path: Path, small_data: Path) -> list[str]:
    """Arguments for a run in a folder of its own."""
    return ["--demo", "--data_dir", str(small_data), "--job_dir", str(tmp_path / "job"), "--num_epochs", "2"]


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("float") / "res20_32bit"
    arguments = [
        "--demo",
        "--data_dir",
        small_data,
        "--bitW",
        32,
        "--abitW",
        32,
        "--num_epochs",
        1,
        "--job_dir",
        folder,
    ]
    result = run(RESNET20, *arguments)
    assert result.returncode == 0, result.stderr
    return folder / "checkpoint" / "model_best.pt"


def folder_of(job: list[str]) -> Path:
    return Path(job[job.index("--job_dir") + 1])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_readme_command_runs_when_the_float_file_is_there(job: list[str], float_file: Path) -> None:
    place = folder_of(job).parent / "pretrained" / "res20_32bit"
    place.mkdir(parents=True)
    (place / "model_best.pt").write_bytes(float_file.read_bytes())
    result = run(RESNET20, *README, *job, cwd=place.parents[1])
    assert result.returncode == 0, result.stderr
    folder = folder_of(job)
    state = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    assert {"state_dict_t", "best_prec1", "best_prec5", "optimizer_t", "scheduler_t", "epoch"} <= set(state)
    assert state["epoch"] == 2
    assert [row["epoch"] for row in metrics(folder)] == [0, 1]
    for name in ("config.json", "config.txt", "logger.log", "run/train", "run/test", "checkpoint/model_best.pt"):
        assert (folder / name).exists(), name
    log = (folder / "logger.log").read_text()
    assert re.search(r"epoch 0: \d+ images/s, \d+\.\d % of the time waiting for data", log)
    assert "loaded 128 tensors" in log
    assert "=> Preparing data..\n=> Building model...\n" in result.stdout
    layers = json.loads((folder / "summary.json").read_text())["layers"]
    assert layers[0]["input_levels"] > 256, "the image stays float"
    assert all(layer["weight_levels"] <= 256 for layer in layers)
    assert 2 < layers[1]["input_levels"] <= 2**7 + 1


def test_without_the_float_file_it_says_where_it_looked(job: list[str], tmp_path: Path) -> None:
    line = refusal(RESNET20, *README, *job, cwd=tmp_path)
    assert "res20_32bit/model_best.pt was not found; looked under pretrained" in line
    assert "drive.google.com" in line
    assert "--bitW 32" in line


@pytest.mark.parametrize("name", ["resnet56", "densenet40"])
def test_the_other_two_networks_train_quantized(name: str, job: list[str]) -> None:
    arguments = [*job, "--pretrained", "False", "--bitW", 3, "--num_epochs", 1, "--train_batch_size", 128]
    result = run(f"single_domain/{name}", *arguments)
    assert result.returncode == 0, result.stderr
    assert len(weights(folder_of(job) / "checkpoint" / "last.pt")) == {"resnet56": 344, "densenet40": 236}[name]


@pytest.mark.parametrize("widths", [("4", "8"), ("32", "4"), ("4", "32")])
def test_mixed_widths_train(widths: tuple[str, str], job: list[str], float_file: Path) -> None:
    source = ["--source_dir", float_file.parents[1], "--source_file", "checkpoint/model_best.pt"]
    result = run(RESNET20, *job, "--bitW", widths[0], "--abitW", widths[1], *source, "--num_epochs", 1)
    assert result.returncode == 0, result.stderr


def test_a_run_repeats_itself_from_its_config(job: list[str], tmp_path: Path) -> None:
    assert run(RESNET20, *job, "--bitW", 4, "--pretrained", "no").returncode == 0
    again = tmp_path / "again"
    assert run(RESNET20, "--config", folder_of(job) / "config.json", "--job_dir", again).returncode == 0
    assert same_weights(folder_of(job) / "checkpoint/last.pt", again / "checkpoint/last.pt")


def test_a_resumed_run_is_bit_identical_and_another_seed_is_not(job: list[str], tmp_path: Path) -> None:
    whole, parts, other = tmp_path / "whole", tmp_path / "parts", tmp_path / "other"
    common = [*job, "--bitW", 2, "--pretrained", "no", "--num_epochs", 3]
    assert run(RESNET20, *common, "--job_dir", whole).returncode == 0
    process = start(RESNET20, *common, "--job_dir", parts)
    while not (parts / "checkpoint" / "last.pt").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("continues from the last finished epoch")
    assert run(RESNET20, *common, "--job_dir", parts, "--resume").returncode == 0
    assert same_weights(whole / "checkpoint/last.pt", parts / "checkpoint/last.pt")
    assert same_weights(whole / "checkpoint/model_best.pt", parts / "checkpoint/model_best.pt")
    assert metrics(whole) == metrics(parts)
    assert run(RESNET20, *common, "--job_dir", other, "--seed", 1).returncode == 0
    assert not same_weights(whole / "checkpoint/last.pt", other / "checkpoint/last.pt")


def test_kill_9_at_random_moments_never_leaves_an_unreadable_file(job: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = [*job, "--bitW", 4, "--pretrained", "no", "--num_epochs", 4]
    assert run(RESNET20, *common, "--job_dir", whole).returncode == 0
    moments = random.Random(0)
    for _ in range(3):
        process = start(RESNET20, *common, "--job_dir", killed, "--resume")
        time.sleep(moments.uniform(3.0, 7.0))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if (killed / "checkpoint" / "last.pt").exists():
            assert "optimizer_t" in torch.load(killed / "checkpoint" / "last.pt", weights_only=True)
    assert run(RESNET20, *common, "--job_dir", killed, "--resume").returncode == 0
    assert same_weights(whole / "checkpoint/last.pt", killed / "checkpoint/last.pt")
    assert same_weights(whole / "checkpoint/model_best.pt", killed / "checkpoint/model_best.pt")
    assert metrics(whole) == metrics(killed)


def test_the_second_of_two_runs_in_one_folder_is_refused(job: list[str]) -> None:
    common = [*job, "--pretrained", "no", "--bitW", 4, "--num_epochs", 200]
    first = start(RESNET20, *common)
    while not (folder_of(job) / "checkpoint" / "last.pt").exists():
        time.sleep(0.05)
        assert first.poll() is None
    assert "another run is writing there" in refusal(RESNET20, *common, "--resume")
    first.kill()
    first.communicate()
    assert "add --resume to continue it" in refusal(RESNET20, *common), "a killed run leaves no lock"


def test_reset_starts_over_and_removes_only_our_own_folders(job: list[str], tmp_path: Path) -> None:
    common = [*job, "--pretrained", "no", "--bitW", 4, "--num_epochs", 1]
    assert run(RESNET20, *common).returncode == 0
    before = (folder_of(job) / "checkpoint" / "last.pt").stat().st_mtime_ns
    assert "holds a run; add --resume to continue it or --reset" in refusal(RESNET20, *common)
    assert run(RESNET20, *common, "--reset").returncode == 0
    assert (folder_of(job) / "checkpoint" / "last.pt").stat().st_mtime_ns > before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    for more in ([], ["--reset"], ["--resume"], ["--test_only"]):
        assert "holds files that no run of this program made" in refusal(RESNET20, *common, "--job_dir", foreign, *more)
    assert [entry.name for entry in foreign.iterdir()] == ["thesis.tex"]
    assert (foreign / "thesis.tex").read_text() == "precious"


def test_a_refused_run_leaves_no_folder_and_no_marker(job: list[str], tmp_path: Path) -> None:
    folder = folder_of(job)
    refusal(RESNET20, *job, "--bitW", 4, "--source_file", tmp_path / "absent.pt")
    assert not folder.exists(), "made by the run that was refused"
    folder.mkdir()
    refusal(RESNET20, *job, "--bitW", 4, "--source_file", tmp_path / "absent.pt")
    assert list(folder.iterdir()) == [], "made by the user"


def test_a_refused_run_touches_no_other_jobs_half_written_file(job: list[str], tmp_path: Path) -> None:
    inner = tmp_path / "all" / "job" / "checkpoint"
    inner.mkdir(parents=True)
    (inner / ".last.pt.123.tmp").write_text("being written")
    assert "no run of this program made" in refusal(RESNET20, *job, "--bitW", 32, "--job_dir", tmp_path / "all")
    assert run(RESNET20, *job, "--bitW", 32, "--num_epochs", 1, "--job_dir", tmp_path / "own").returncode == 0
    for name in (".last.pt.99.tmp", ".hidden.tmp"):
        (tmp_path / "own" / "checkpoint" / name).touch()
    (tmp_path / "own" / "kept").mkdir()
    (tmp_path / "own" / "kept" / ".last.pt.7.tmp").touch()
    refusal(RESNET20, *job, "--bitW", 32, "--job_dir", tmp_path / "own")
    assert (tmp_path / "own" / "checkpoint" / ".last.pt.99.tmp").exists(), "it was refused"
    assert run(RESNET20, *job, "--bitW", 32, "--resume", "--job_dir", tmp_path / "own").returncode == 0
    assert not (tmp_path / "own" / "checkpoint" / ".last.pt.99.tmp").exists(), "of a killed run of this job"
    assert (tmp_path / "own" / "checkpoint" / ".hidden.tmp").exists(), "not a name that this program gives"
    assert (tmp_path / "own" / "kept" / ".last.pt.7.tmp").exists(), "not in a folder that it writes to"
    assert (inner / ".last.pt.123.tmp").read_text() == "being written"


def test_resuming_into_another_folder_ends_as_the_whole_run_does(job: list[str], tmp_path: Path) -> None:
    common = [*job, "--pretrained", "no", "--bitW", 4, "--num_epochs", 4, "--save_every", 1, "--lr", 0.3]
    assert run(RESNET20, *common).returncode == 0
    whole = json.loads((folder_of(job) / "summary.json").read_text())
    path = folder_of(job) / "checkpoint" / f"model_{max(whole['best']['epoch'] + 1, 2)}.pt"
    moved = run(RESNET20, *common, "--job_dir", tmp_path / "moved", "--resume", path)
    assert moved.returncode == 0, moved.stderr
    assert json.loads((tmp_path / "moved" / "summary.json").read_text()) == whole
    assert [row["epoch"] for row in metrics(tmp_path / "moved")] == [0, 1, 2, 3]


def test_select_val_holds_out_and_the_test_set_decides_nothing(job: list[str]) -> None:
    result = run(RESNET20, *job, "--pretrained", "no", "--bitW", 4, "--select", "val", "--num_epochs", 3)
    assert result.returncode == 0, result.stderr
    rows = metrics(folder_of(job))
    judged = [row["val"]["prec1"] for row in rows]
    summary = json.loads((folder_of(job) / "summary.json").read_text())
    assert summary["selected_by"] == "val"
    assert summary["best"]["epoch"] == judged.index(max(judged))
    assert summary["best"]["test_prec1"] == rows[summary["best"]["epoch"]]["test"]["prec1"]


def test_test_only_reproduces_the_best_epochs_accuracy_and_changes_no_file(job: list[str]) -> None:
    assert run(RESNET20, *job, "--pretrained", "no", "--bitW", 4).returncode == 0
    best = json.loads((folder_of(job) / "summary.json").read_text())["best"]["test_prec1"]
    before = {p: p.stat().st_mtime_ns for p in (folder_of(job) / "checkpoint").iterdir()}
    result = run(RESNET20, *job, "--bitW", 4, "--test_only")
    assert result.returncode == 0, result.stderr
    assert f"demo test top-1: {best:.3f}" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in (folder_of(job) / "checkpoint").iterdir()}


def test_a_run_ends_with_its_result_and_leaves_the_layers_to_the_log(job: list[str]) -> None:
    result = run(RESNET20, *job, "--num_epochs", 1, "--pretrained", "no", "--bitW", 4, "--adapt", "bn")
    assert result.returncode == 0, result.stderr
    names = ["bits", "quantized", "accuracy", "file", "next"]
    ending = result.stdout.splitlines()[-len(names) :]
    assert [line.split()[0] for line in ending] == names
    summary = json.loads((folder_of(job) / "summary.json").read_text())
    adapted = summary["adapted"]["test"]["prec1"]
    assert f"demo test top-1: {summary['best']['test_prec1']:.3f} at epoch 0" in ending[2]
    assert f"re-aligned: {adapted:.3f}" in ending[2]
    assert re.match(r"bits +weights 4, effective 3\.\d to 4\.0; activations 4, effective ", ending[0])
    assert Path(ending[3].split()[1]) == folder_of(job) / "checkpoint" / "model_best.pt"
    log = (folder_of(job) / "logger.log").read_text()
    assert all(f"levels of {layer['layer']}: " in log for layer in summary["layers"])
    assert "levels of" not in result.stdout + result.stderr
    assert all(line in log for line in ending)


def test_save_every_keeps_numbered_checkpoints(job: list[str]) -> None:
    assert run(RESNET20, *job, "--pretrained", "no", "--bitW", 4, "--save_every", 1).returncode == 0
    names = {path.name for path in (folder_of(job) / "checkpoint").iterdir()}
    assert names == {"last.pt", "model_best.pt", "model_1.pt", "model_2.pt"}


def test_the_gradient_approximation_acts(job: list[str], tmp_path: Path) -> None:
    files = []
    for rule in ("sigmoid", "ste"):
        folder = tmp_path / rule
        assert (
            run(
                RESNET20,
                *job,
                "--pretrained",
                "no",
                "--bitW",
                4,
                "--grad_approx",
                rule,
                "--num_epochs",
                1,
                "--job_dir",
                folder,
            ).returncode
            == 0
        )
        files.append(folder / "checkpoint" / "last.pt")
    assert not same_weights(*files)


def test_a_diverging_run_stops_with_epoch_step_and_checkpoint(job: list[str], float_file: Path) -> None:
    line = refusal(RESNET20, *job, "--bitW", 32, "--lr", "1e30", "--num_epochs", 3)
    assert "NaN or infinite at epoch" in line
    assert "step" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bitW", "9"], "--bitW 9: method ours defines 1, 2, 3, 4, 5, 6, 7, 8 and 32"),
        (["--method", "lsq", "--bitW", "1"], "--bitW 1: method lsq defines 2, 3, 4, 5, 6, 7, 8 and 32"),
        (["--method", "apot", "--bitW", "8"], "--bitW 8: method apot defines 2, 3, 4, 5 and 32"),
        (["--method", "what"], "--method what: expected one of ours"),
        (["--levels", "published", "--bitW", "1"], "--levels published"),
        (["--num_epoch", "3"], "unknown flag --num_epoch; did you mean --num_epochs?"),
        (["--bitW", "4", "--source_dir", "x", "--source_file", "nowhere.pt"], "nowhere.pt was not found"),
        (["--bitW", "32", "--resume", "nowhere.pt"], "nowhere.pt: there is no such file"),
        (["--bitW", "32", "--device", "cuda"], "--device cuda: this torch sees no CUDA device"),
    ],
)
def test_every_fault_gets_one_line_and_status_2(arguments: list[str], message: str, job: list[str]) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        arguments = ["--bitW", "32", "--device", "auto", "--gpus", "99"]
        message = "--gpus 99: this machine has"
    assert message in refusal(RESNET20, *job, *arguments)


def test_a_bit_width_that_is_not_defined_is_refused_before_data_are_read(tmp_path: Path) -> None:
    line = refusal(
        RESNET20, "--data_dir", tmp_path / "nothing", "--job_dir", tmp_path / "job", "--method", "llsq", "--bitW", 1
    )
    assert "--bitW 1" in line
    assert not (tmp_path / "job").exists()


def test_damaged_data_and_files_are_named(job: list[str], small_data: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "model.pt"
    torch.save({"state_dict_t": build_model("resnet20_quant").state_dict()}, truncated)
    truncated.write_bytes(truncated.read_bytes()[:1000])
    assert "model.pt: not a complete PyTorch checkpoint" in refusal(
        RESNET20, *job, "--bitW", 4, "--source_dir", tmp_path, "--source_file", "model.pt"
    )
    missing = refusal(
        RESNET20, "--data_dir", tmp_path, "--download", "False", "--bitW", 32, "--job_dir", tmp_path / "j"
    )
    assert "--demo" in missing


def test_a_full_disk_ends_in_one_line_and_keeps_what_was_saved(job: list[str], tmp_path: Path) -> None:
    """From the second run on, every flush to disk fails as on a full one."""
    common = [*job, "--pretrained", "no", "--bitW", 4]
    assert run(RESNET20, *common, "--num_epochs", 1).returncode == 0
    saved = weights(folder_of(job) / "checkpoint" / "last.pt")
    full = tmp_path / "sitecustomize.py"
    full.write_text("import os\ndef fsync(fd):\n    raise OSError(28, 'No space left on device')\nos.fsync = fsync\n")
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        process = start(RESNET20, *common, "--resume")
        line = refusal_line(process.wait(), process.stderr.read())
    finally:
        del os.environ["PYTHONPATH"]
    assert "No space left on device" in line
    after = weights(folder_of(job) / "checkpoint" / "last.pt")
    assert all(torch.equal(after[key], saved[key]) for key in saved)


def test_a_resumed_run_refuses_other_settings(job: list[str], tmp_path: Path) -> None:
    assert run(RESNET20, *job, "--pretrained", "no", "--bitW", 4, "--num_epochs", 1).returncode == 0
    assert "it was made with --bitW 4, not 8" in refusal(RESNET20, *job, "--bitW", 8, "--resume")
    finished = folder_of(job) / "checkpoint" / "last.pt"
    elsewhere = [*job, "--bitW", 4, "--num_epochs", 1, "--job_dir", tmp_path / "elsewhere", "--resume", finished]
    assert "nothing is left to train" in refusal(RESNET20, *elsewhere)


def test_a_source_that_saw_the_held_out_images_is_named(job: list[str], tmp_path: Path) -> None:
    val = [*job, "--num_epochs", 1, "--select", "val"]
    for name, words in (("saw", []), ("held", ["--select", "val"]), ("other", ["--select", "val", "--split_seed", 2])):
        assert (
            run(RESNET20, *job, "--bitW", 32, "--num_epochs", 1, *words, "--job_dir", tmp_path / name).returncode == 0
        )
        source = tmp_path / name / "checkpoint" / "last.pt"
        result = run(
            RESNET20, *val, "--bitW", 4, "--source_file", source, "--job_dir", tmp_path / f"{name}4", "--seed", 5
        )
        assert result.returncode == 0, result.stderr
        warning = json.loads((tmp_path / f"{name}4" / "summary.json").read_text())["source_file_warning"]
        assert bool(warning) == (name != "held"), "a split does not follow --seed"
        assert ("trained on images that --select val holds out" in result.stderr) == bool(warning)
