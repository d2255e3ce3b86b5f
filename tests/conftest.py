"""Shared by all tests: one thread per process, golden vectors, and the real command lines run in a temporary folder."""

import multiprocessing
import os
import runpy
import shlex
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # bits are compared and two processes meet: typed, it is kept

import hypothesis
import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["common.engine.program"])


@pytest.fixture(scope="session")
def golden_models() -> dict[str, torch.Tensor]:
    with np.load(REPOSITORY / "tests" / "golden" / "models.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def fill_by_name(model: torch.nn.Module) -> torch.nn.Module:
    """Fill a network from its state's names, as the golden vectors were made."""
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.zero_()
            continue
        if value.ndim == 0:  # a learned scale, which its first data set
            continue
        drawn = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(value.shape))
        if key.endswith(("running_mean", "bias")):
            drawn = 0.1 * drawn
        elif key.endswith("running_var"):
            drawn = 1 + 0.2 * np.abs(drawn)
        elif value.ndim == 1:
            drawn = 1 + 0.1 * drawn
        else:
            drawn = drawn * np.sqrt(2 / np.prod(value.shape[1:]))
        value.copy_(torch.from_numpy(drawn.astype(np.float32)))
    return model


def readme_command(part: str) -> list[str]:
    """The words behind "python main.py" of the one command in README.md that holds ``part``, as a shell splits them."""
    text = (REPOSITORY / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("python main.py") and part in line]
    return shlex.split(line)[2:]


def start(folder: str, *arguments: object, cwd: Path | None = None) -> subprocess.Popen:
    """Start a task's program; ``cwd`` defaults to its folder, as the README types it."""
    program = REPOSITORY / folder / "main.py"
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd or program.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _become(program: Path, words: list[str], cwd: Path, environment: dict[str, str], out: str, err: str) -> None:
    """In a fresh process: what `python program words…` does, with its output in files."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [str(program), *words]
    runpy.run_path(str(program), run_name="__main__")


def run(folder: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a task's program to its end."""
    program = REPOSITORY / folder / "main.py"
    return run_program(program, [str(argument) for argument in arguments], cwd or program.parent)


def run_program(program: Path, words: list[str], cwd: Path) -> subprocess.CompletedProcess:
    """`python program words…` to its end, in a process of its own that has already imported what they all import."""
    with NamedTemporaryFile("r") as out, NamedTemporaryFile("r") as err:
        arguments = (program, words, cwd, dict(os.environ), out.name, err.name)
        process = FORKS.Process(target=_become, args=arguments)
        process.start()
        process.join(timeout=900)
        assert process.exitcode is not None, f"{program} {words}: still running after 900 s"
        return subprocess.CompletedProcess([str(program), *words], process.exitcode, out.read(), err.read())


def refusal(folder: str, *arguments: object, cwd: Path | None = None) -> str:
    """The one line with which a program refuses; fails if it is not one line and status 2."""
    result = run(folder, *arguments, cwd=cwd)
    return refusal_line(result.returncode, result.stderr)


def refusal_line(status: int, stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if "error:" in line]
    assert status == 2, stderr
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """--data_dir for demo runs; one folder per test process, written at first use by the programs themselves."""
    folder = tmp_path_factory.mktemp("data")
    return lambda: folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data, cut to 256 training and 100 test images so that an epoch takes a second."""
    from common.data import cifar10
    from common.data.demo import cifar10 as demo
    from common.data.demo.cifar10 import python2_pickle

    root = tmp_path_factory.mktemp("data")
    folder = demo.write(root / "demo" / "cifar10")
    train, test = cifar10.load(folder)
    for name, images, part in [
        *((f"data_batch_{i + 1}", train, slice(i * 52, (i + 1) * 52)) for i in range(5)),
        ("test_batch", test, slice(0, 100)),
    ]:
        path = next(folder.rglob(name))
        batch = {
            "batch_label": name,
            "labels": images.labels[part].tolist(),
            "data": images.images[part].flatten(1).numpy(),
            "filenames": [f"{i}.png" for i in range(len(images.labels[part]))],
        }
        path.write_bytes(python2_pickle(batch))
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict_t"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
