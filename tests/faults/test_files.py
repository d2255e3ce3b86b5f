"""Every form of file in every state that a file can be in: refused in one line, by whatever reads it."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.engine.trainer import Trainer
from common.errors import UserError
from tests.faults.conftest import RESNET20, RUN, TRAIN
from tests.faults.damage import CONTENTS, OF_KIND, PLACES, flipped
from tests.faults.harness import refused, somewhere, type_in

DIGITS = "cross_domain/dann_digits/cdf_alignment"
OFFICE = "cross_domain/dann_office/cdf_alignment"
BEST, LAST = "job/checkpoint/model_best.pt", "job/checkpoint/last.pt"
FOUR = "--bitW=4"
OF_DIGITS = [
    "--data_dir=digits",
    "--download=False",
    "--bitW=32",
    "--train_batch_size=8",
    "--num_epochs=1",
    "--job_dir=new",
]
NET = "--model=net.py:make"


class Use(NamedTuple):
    """A file, what of the world goes with it, the kind that it is of, and a command line that reads it."""

    file: str
    with_it: tuple[str, ...]
    kind: str
    command: tuple[str, ...]
    checked: bool = False  # whether a single bit that changed is noticed
    brief: bool = False  # read by what another use has tried in every state
    may_lack: bool = False  # whether it may be missing
    in_folder: bool = False  # found in a folder, of which what is no file is no part

    def __str__(self) -> str:
        return f"{Path(self.file).name} by {Path(self.command[0]).name} {self.command[1].split('=')[0]}"


def of_checkpoint(*command: str, brief: bool = True) -> Use:
    return Use(BEST, (), ".pt", command, checked=True, brief=brief)


USES = [
    of_checkpoint(RESNET20, f"--source_file={BEST}", "--source_dir=.", *RUN, FOUR, "--job_dir=new", brief=False),
    of_checkpoint(RESNET20, "--test_only", f"--source_file={BEST}", "--source_dir=.", *RUN, FOUR, "--job_dir=new"),
    of_checkpoint("export", f"--checkpoint={BEST}", "--out=new.safetensors", brief=False),
    of_checkpoint("evaluate", f"--model={BEST}", "--data_dir=data"),
    of_checkpoint("evaluate", "--against=" + BEST, "--model=net.safetensors", "--data_dir=data"),
    of_checkpoint("parity", f"--checkpoint={BEST}", "--data_dir=data", "--demo=False"),
    of_checkpoint("predict", f"--model={BEST}", "photos"),
    Use(LAST, ("job",), ".pt", (RESNET20, f"--resume={LAST}", *TRAIN, "--num_epochs=3", "--job_dir=new"), checked=True),
    Use(LAST, ("job",), ".pt", (RESNET20, "--resume", *TRAIN, "--num_epochs=3", "--job_dir=job"), True, brief=True),
    Use("weights.pth", (), ".pth", ("quantize", NET, "--images=photos", "--weights=weights.pth", "--out=new.pt")),
    Use("net.safetensors", (), ".safetensors", ("predict", "--model=net.safetensors", "photos"), checked=True),
    Use("net.safetensors", (), ".safetensors", ("evaluate", "--model=net.safetensors", "--data_dir=data"), True, True),
    Use("net.onnx", (), ".onnx", ("predict", "--model=net.onnx", "photos"), checked=True),
    Use("net.onnx", (), ".onnx", ("evaluate", "--model=net.onnx", "--data_dir=data"), True, True),
    Use("job/config.json", (), ".json", (RESNET20, "--config=job/config.json", *TRAIN, "--job_dir=new")),
    Use("job/config.json", ("job",), ".json", (RESNET20, "--resume", *TRAIN, "--num_epochs=3", "--job_dir=job")),
    Use("job/config.json", ("job",), ".json", (RESNET20, "--reset", *TRAIN, "--num_epochs=3", "--job_dir=job")),
    Use(
        *("job/metrics.jsonl", ("job",), ".jsonl", (RESNET20, "--resume", *TRAIN, "--num_epochs=3", "--job_dir=job")),
        may_lack=True,
    ),
    Use("measured/metrics.jsonl", ("measured",), ".jsonl", ("crp_effect", "--with_crp=measured", "--without=measured")),
    Use("measured/summary.json", ("measured",), ".json", ("crp_effect", "--with_crp=measured", "--without=measured")),
    Use("data/cifar-10-batches-py/data_batch_3", ("data",), "batch", (RESNET20, *TRAIN, "--job_dir=new")),
    Use("data/cifar-10-batches-py/batches.meta", ("data",), "batch", (RESNET20, *TRAIN, "--job_dir=new")),
    *(
        Use(
            f"digits/mnist/MNIST/raw/{name}-ubyte", ("digits/mnist",), "ubyte", (DIGITS, "--src_data=mnist", *OF_DIGITS)
        )
        for name in ("train-images-idx3", "t10k-labels-idx1")
    ),
    Use("digits/mnistm/MNISTM/processed/mnist_m_train.pt", ("digits/mnistm",), ".pt", (DIGITS, *OF_DIGITS)),
    Use("digits/svhn/test_32x32.mat", ("digits/svhn",), ".mat", (DIGITS, "--src_data=svhn", *OF_DIGITS)),
    Use(
        "digits/syndigit/imgs_train/0/first.png",
        ("digits/syndigit",),
        ".png",
        (DIGITS, "--src_data=syndigit", *OF_DIGITS),
        may_lack=True,
    ),
    Use("photos/a/2.png", (), ".png", ("predict", "--model=net.safetensors", "photos/a/2.png")),
    Use("photos/a/2.png", ("photos",), ".png", ("predict", "--model=net.safetensors", "photos"), in_folder=True),
    Use(
        *("photos/a/2.png", ("photos",), ".png", ("quantize", NET, "--images=photos", "--img_size=32", "--out=new.pt")),
        in_folder=True,
    ),
    Use("net.py", (), ".py", ("quantize", NET, "--images=photos", "--img_size=32", "--out=new.pt")),
]


def faults(use: Use) -> list[str]:
    """Those that are faults of this use: the forms themselves say what is none."""
    found = {*CONTENTS, *PLACES, *OF_KIND.get(use.kind, {}), *(["flipped"] if use.checked else [])}
    if use.brief:
        found = {*PLACES, "truncated", "foreign"}
    if use.kind in (".json", ".jsonl", ".py", ".png", ".mat"):
        found -= {"without its last byte"}  # an end of line, or what readers of images do not miss
    if use.kind == ".png":
        found -= {"limitless"}  # what follows an image is not read
    if use.kind == ".jsonl":
        found -= {"truncated"}  # its last line does not count then
    if use.kind == ".mat":
        found -= {"torn"}  # a text that says who wrote it
    if use.may_lack:
        found -= {"absent", *(("empty", "zeros") if use.kind == ".jsonl" else ())}
    if use.in_folder:
        found -= PLACES.keys()
    return sorted(found)


@pytest.mark.parametrize(("use", "fault"), [(use, fault) for use in USES for fault in faults(use)], ids=str)
def test_a_damaged_file_is_refused_in_one_line(use: Use, fault: str, world: Path, tmp_path: Path) -> None:
    with somewhere(tmp_path / "here") as here:
        bring(world, here, use)
        spoil(here / use.file, fault, use.kind)
        line = refused(*use.command)
        assert Path(use.file).name in line or use.file.split("/")[0] in line, line
        assert not (here / "executed").exists()


@pytest.mark.parametrize("use", USES, ids=str)
def test_what_is_whole_is_taken(use: Use, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is the damage that is refused; a run gets as far as its training, where this stops it."""

    def stop(trainer: Trainer) -> dict[str, Any]:
        raise UserError("training would begin")

    monkeypatch.setattr(Trainer, "train", stop)
    with somewhere(tmp_path / "here") as here:
        bring(world, here, use)
        ended = type_in(*use.command)
        assert ended.status == 0 or "training would begin" in ended.err, ended.err


def bring(world: Path, here: Path, use: Use) -> None:
    """The file with what belongs to it as copies, the rest as links."""
    for name in use.with_it or (use.file,):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (world / name).is_dir() else shutil.copyfile
        copy(world / name, here / name)
    for place in (world, *(world / name for name in ("digits",))):
        for entry in place.iterdir():
            link = here / entry.relative_to(world)
            if not link.exists():
                link.symlink_to(entry)


def spoil(path: Path, fault: str, kind: str) -> None:
    if fault in PLACES:
        PLACES[fault](path)
        return
    made = OF_KIND.get(kind, {}).get(fault)
    damage = {**CONTENTS, "flipped": flipped}.get(fault)
    path.write_bytes(made() if made is not None else damage(path.read_bytes()))
