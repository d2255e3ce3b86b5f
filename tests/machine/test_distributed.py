"""Several processes as one run: the same step, one voice, and an end together."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed import run as torchrun

from common.adaptation.base import Pass
from common.adaptation.dann import DANN
from common.adaptation.distillation import Distillation
from common.adaptation.source_only import SourceOnly
from common.config.options import parse
from common.config.tasks import Task
from common.data import cifar10
from common.data.demo import cifar10 as demo_cifar10
from common.data.demo.folder import MARKER
from common.data.images import ImageSet
from common.data.kinds import DOMAINS, RunData
from common.data.tensors import TensorBatches
from common.engine import program
from common.engine.evaluation import measure
from common.engine.meters import FiniteWatch
from common.engine.trainer import Trainer
from common.errors import UserError
from common.machine import distributed
from common.models import build_model, class_logits
from common.runs.cli import run_cleanly
from tests.conftest import REPOSITORY

RESNET20 = Task("resnet20", REPOSITORY / "single_domain/resnet20", model="resnet20_quant", stem="res20")
DIGITS = Task(
    "dann_digits", REPOSITORY, "MNISTmodel_quant", "digits", "dann", defaults={"src_data": "a", "tgt_data": "b"}
)
Answers = list[tuple[int, str, Any]]  # of each process: status, stderr, what it returned


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Answers]:
    """Run a function in two processes as torchrun would: forked, since importing torch anew takes seconds."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def child(rank: int, function: Callable[[], Any]) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        names |= {"MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": 0}
        os.environ.update({name: str(value) for name, value in names.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
        errors = os.open(tmp_path / f"{rank}.err", os.O_CREAT | os.O_WRONLY)
        os.dup2(errors, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 -- pytest has put its own there
        status = 1
        try:
            distributed.start()
            torch.save(function(), tmp_path / f"{rank}.pt")
            distributed.leave()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def run(function: Callable[[], Any]) -> Answers:
        children = []
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                child(rank, function)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children]
        files = [tmp_path / f"{rank}.pt" for rank in range(2)]
        returned = [torch.load(file) if file.exists() else None for file in files]
        texts = [(tmp_path / f"{rank}.err").read_text() for rank in range(2)]
        return list(zip(statuses, texts, returned, strict=True))

    return run


def _images(domain: str, count: int) -> TensorBatches:
    draws = torch.Generator().manual_seed(len(domain))
    images = torch.randint(256, (count, 3, 28, 28), dtype=torch.uint8, generator=draws)
    image_set = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"), domain)
    return TensorBatches(
        image_set=image_set, batch_size=8, mean=0.5, std=0.5, domain=domain, shuffle=True, share=distributed.share()
    )


def _still(model: nn.Module) -> nn.Module:
    """Float64, so that no rounding step flips; dropout off and BatchNorm in evaluation mode, also while training."""
    model.double()
    model.train = lambda mode=True: nn.Module.train(model, False)  # type: ignore[method-assign]
    return model


class _Wide:
    """A mixin: images in the network's float64, and adaptation at half of its way."""

    def forward(self, images: torch.Tensor) -> Pass:
        return super().forward(images.double())  # type: ignore[misc]

    def __call__(self, source: Any, labels: Any, target: Any, progress: float) -> Any:
        return super().__call__(source, labels, target, 0.5)  # type: ignore[misc]


class _WideDANN(_Wide, DANN):
    pass


class _WideSourceOnly(_Wide, SourceOnly):
    pass


def _train(task: Task, objective: Any, domains: tuple[str, ...], steps: int) -> tuple[dict, dict]:
    words = [
        "--lr",
        "0.1",
        "--lr_decay_steps",
        "[]",
        "--num_epochs",
        "1",
        "--train_batch_size",
        "8",
        "--weight_decay",
        "0.1",
    ]
    words += ["--epoch_length", "min"] if task.cross else []
    silent = {
        "log": lambda text: None,
        "scalars": lambda *values: None,
        "last": Path("none"),
        "restore": lambda tested: None,
    }
    data = RunData({domain: _images(domain, 8 * steps) for domain in domains}, {}, (), "")
    trainer = Trainer(objective, data, parse(task, words), SimpleNamespace(**silent), pretrained=False)  # type: ignore[arg-type]
    return objective.network.state_dict(), trainer.train_one_epoch(0)["train"]


def _train_single(bits: int, steps: int) -> tuple[dict, dict]:
    torch.manual_seed(0)
    network = _still(build_model("resnet20_quant", bitW=bits, abitW=bits))
    return _train(RESNET20, _WideSourceOnly(network, 10), ("source",), steps)


def _train_dann(source_only: bool, steps: int, taught: bool = False) -> tuple[dict, dict]:
    torch.manual_seed(0)
    network = _still(build_model("MNISTmodel_quant", bitW=4, abitW=4, img_size=28))
    objective = (_WideSourceOnly if source_only else _WideDANN)(network, 10)
    if taught:
        teacher = _still(build_model("MNISTmodel_quant", img_size=28).eval())
        objective.distillation = Distillation(lambda images: class_logits(teacher, images.double()), 0.5, 2.0)
    return _train(DIGITS, objective, DOMAINS, steps)


@pytest.mark.parametrize(
    "step",
    [
        lambda: _train_single(32, 2),
        lambda: _train_single(4, 1),
        lambda: _train_dann(False, 1),
        lambda: _train_dann(True, 2),
        lambda: _train_dann(False, 1, taught=True),
    ],
    ids=["float, two steps", "4 bits", "two domains", "source only: a discriminator without gradient", "a teacher"],
)
def test_two_processes_take_the_step_of_one(step: Callable[[], tuple[dict, dict]], pair: Any) -> None:
    weights, means = step()
    (_, text, first), (_, _, second) = pair(step)
    assert first is not None, text
    assert first[0].keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(first[0][name], weights[name], rtol=1e-5, atol=1e-5, msg=name)
        assert torch.equal(first[0][name], second[0][name]), name
    assert first[1] == second[1] == pytest.approx(means, rel=1e-5)


def _evaluate() -> dict[str, float]:
    torch.manual_seed(0)
    batches = TensorBatches(image_set=_images("source", 24).image_set, batch_size=5, mean=0.5, std=0.5)
    return measure(SourceOnly(build_model("resnet20_quant"), 10), batches)[0]


def test_an_evaluation_dealt_out_has_the_result_of_one_process(pair: Any) -> None:
    (_, text, first), (_, _, second) = pair(_evaluate)
    assert first == second == pytest.approx(_evaluate(), rel=1e-5), text


def _statistics() -> list[float]:
    norm = nn.BatchNorm2d(2)
    norm(torch.full((4, 2, 3, 3), float(distributed.rank())))
    distributed.average_statistics(norm)
    torch.manual_seed(5)
    distributed.seed_epoch(5, 0)
    return [*norm.running_mean.tolist(), float(torch.rand(()))]


def test_running_statistics_are_averaged_and_dropout_draws_differ(pair: Any) -> None:
    (_, _, first), (_, _, second) = pair(_statistics)
    assert first[:2] == second[:2] == pytest.approx([0.05, 0.05]), "0.1 * (0 + 1) / 2"
    assert first[2] != second[2]
    assert first[2] == float(torch.rand((), generator=torch.Generator().manual_seed(5))), "as alone"


def _unreadable_image_in_the_second() -> None:
    if distributed.rank() == 1:
        raise UserError("a.jpg: cannot be read")
    distributed.gather(None)


def _infinite_loss_in_the_second() -> None:
    watch = FiniteWatch(torch.device("cpu"))
    watch.see(torch.tensor(float("inf") if distributed.rank() == 1 else 1.0), 7)
    watch.check(3, "none yet")


def _killed() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.gather(None)


@pytest.mark.parametrize(
    ("program", "line", "statuses"),
    [
        (_unreadable_image_in_the_second, "a.jpg: cannot be read", [1, 2]),
        (_infinite_loss_in_the_second, "NaN or infinite at epoch 3, step 7", [2, 2]),
        (_killed, "another process of this run has ended or does not answer", [1, -signal.SIGKILL]),
    ],
)
def test_a_fault_in_one_process_ends_both_with_one_line(
    program: Callable[[], None], line: str, statuses: list[int], pair: Any
) -> None:
    answers = pair(lambda: run_cleanly(program))
    text = "".join(answer[1] for answer in answers)
    assert line in text
    assert len(text.splitlines()) == 1, text
    assert [answer[0] for answer in answers] == statuses


def test_a_batch_that_cannot_be_shared_is_refused_once(pair: Any, tmp_path: Path) -> None:
    words = ["--demo", "--data_dir", str(tmp_path), "--train_batch_size", "7", "--job_dir", str(tmp_path / "job")]
    answers = pair(lambda: program.main(RESNET20, words))
    assert [status for status, _, _ in answers] == [2, 2]
    (line,) = "".join(text for _, text, _ in answers).splitlines()
    assert "--train_batch_size 7 cannot be shared by 2 processes; expected a multiple of 2, such as 6" in line
    assert not (tmp_path / "job").exists()


def test_synchronised_batch_norm_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sync_bn needs CUDA devices"):
        program.run(RESNET20, ["--sync_bn", "--device", "cpu", "--job_dir", str(tmp_path)])


@pytest.fixture
def few_images(tmp_path: Path) -> Path:
    """The demo data's files with 40 training and 20 test images: an epoch is one step."""
    folder = tmp_path / "data" / "demo" / "cifar10" / cifar10.FOLDER
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(demo_cifar10.ABOUT, encoding="utf-8")
    (folder / cifar10.META).write_bytes(demo_cifar10.python2_pickle({"label_names": list("abcdefghij")}))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    for name, count in (*((name, 8) for name in cifar10.TRAIN_BATCHES), (cifar10.TEST_BATCH, 20)):
        batch = {"labels": [number % 10 for number in range(count)], "data": pixels[:count]}
        (folder / name).write_bytes(demo_cifar10.python2_pickle(batch))
    return tmp_path / "data"


def _torchrun(words: list[str], output: Path) -> int:
    """torchrun with two processes, itself forked; returns its number."""
    number = os.fork()
    if number == 0:
        status = 1
        try:
            file = os.open(output, os.O_CREAT | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ["OMP_NUM_THREADS"] = "1"
            torchrun.main(["--standalone", "--nproc_per_node=2", *words])
            status = 0
        finally:
            os._exit(status)
    return number


def _worker(number: int, rank: int) -> int:
    """The process with that rank among those of a torchrun."""
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    (found,) = [n for n in children if f"\0RANK={rank}\0" in Path(f"/proc/{n}/environ").read_text()]
    return int(found)


def test_torchrun_trains_and_after_a_kill_one_process_resumes(few_images: Path, tmp_path: Path) -> None:
    job, main, output = tmp_path / "job", str(RESNET20.folder / "main.py"), tmp_path / "output"
    words = ["--demo", "--data_dir", few_images, "--job_dir", job, "--bitW", 4, "--pretrained", "no"]
    last = job / "checkpoint" / "last.pt"
    number = _torchrun([main, *map(str, words), "--num_epochs", "10000"], output)
    while not last.exists():
        time.sleep(0.05)
        assert os.waitpid(number, os.WNOHANG) == (0, 0), output.read_text()
    os.kill(_worker(number, 1), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 1
    text = output.read_text()
    said = [line for line in text.splitlines() if line.startswith(f"{main}: ")]
    assert len(said) == 1, text
    assert "another process of this run has ended" in said[0]
    assert "--resume continues from the last finished epoch" in said[0]
    assert text.count("=> Building model") == 1
    state = torch.load(last, weights_only=True)
    assert state["state_dict_t"].keys() == build_model("resnet20_quant", bitW=4).state_dict().keys()
    program.run(RESNET20, list(map(str, [*words, "--resume", "--num_epochs", state["epoch"] + 1])))
    assert torch.load(last, weights_only=True)["epoch"] == state["epoch"] + 1
