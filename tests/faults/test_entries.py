"""Every value that a file can say, replaced by what it never is: read as if typed, refused in one line."""

import copy
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from common.config.options import all_flags
from common.deploy import restore
from common.deploy.packed import file as packed
from common.errors import UserError
from common.flags import Flag
from common.runs.progress import NEEDED
from tests.faults.conftest import RESNET20, TRAIN
from tests.faults.harness import TASKS, refused, somewhere, type_in

JUNK: dict[str, Any] = {
    "a list of lists": [[["x"]]],
    "named values": {"a": {"b": "\x1b[31m"}},
    "negative": -1,
    "huge": 10**30,
    "nan": math.nan,
    "a text": "x\ny" * 2000,
    "nothing": None,
    "true": True,
}
RESUME = ("--num_epochs=3", "--job_dir=job")


def drawn(names: Iterable[str], by: str, count: int = 2) -> list[str]:
    """Some of them, others for another ``by``: all of them everywhere would take minutes."""
    return sorted(names, key=lambda name: zlib.crc32(f"{by} {name}".encode()))[:count]


def is_taken(flag: Flag | None, value: Any) -> bool:
    try:
        return flag is not None and (flag.value(value, "") is None or True)
    except UserError:
        return False


@pytest.mark.parametrize(
    ("program", "name"),
    [(program, name) for program in TASKS if "cdf" not in program for name in all_flags(TASKS[program])],
)
def test_an_entry_of_a_jobs_configuration(program: str, name: str, tmp_path: Path) -> None:
    flag = all_flags(TASKS[program])[name]
    options = {"data_dir": "nowhere", "download": False, "job_dir": "job"}
    with somewhere(tmp_path / "here"):
        for value in JUNK.values():
            if name == "demo" and value is True:
                continue  # it makes its data
            content = {"program": "alignq", "task": TASKS[program].name, "options": {**options, name: value}}
            Path("config.json").write_text(json.dumps(content))
            line = refused(program, "--config=config.json", "--data_dir=nowhere", "--download=False", "--job_dir=job")
            passed_over = name in ("config", "resume", "reset", "test_only", "data_dir", "download", "job_dir")
            if not (is_taken(flag, value) or passed_over):
                assert "config.json" in line
                assert name in line


def spoilt(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(content)
    place = found
    for key in path[:-1]:
        place = place[key]
    if value is DROPPED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return found


class _Dropped:
    pass


DROPPED = _Dropped()
CHECKED = (*NEEDED, "split_seen", "amp")


@pytest.mark.parametrize("key", CHECKED)
def test_an_entry_of_a_checkpoint_to_resume_from(key: str, world: Path, tmp_path: Path) -> None:
    """Before the first step, and nothing in the job is changed."""
    whole = torch.load(world / "job" / "checkpoint" / "last.pt", weights_only=True)
    with somewhere(tmp_path / "here") as here:
        Path("data").symlink_to(world / "data")
        shutil.copytree(world / "job", "job")
        for path, value in faults_of(whole, key):
            torch.save(spoilt(whole, path, value), here / "job" / "checkpoint" / "last.pt")
            line = refused(RESNET20, "--resume", *TRAIN, *RESUME)
            assert "--resume" in line, (path, value, line)


def faults_of(whole: dict[str, Any], key: str) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Junk in place of it, and of what is in it where that is read."""
    if key in NEEDED:
        yield (key,), DROPPED
    for value in JUNK.values():
        if type(value) is not type(whole[key]) or (isinstance(value, dict | int) and value is not True):
            yield (key,), value
    inner = {
        "state_dict_t": [("conv0.weight",)],
        "optimizer_t": [("state",), ("param_groups",), ("param_groups", 0, "lr"), ("param_groups", 0, "params")],
        "random": [(name,) for name in whole["random"]],
        "best": [("epoch",), ("judged",), ("test",), ("test", "prec1")],
        "peaks": [("test",), ("test", "prec1")],
        "config": [("model",), ("bitW",), ("seed",), ("method",)],
        "scheduler_t": [("last_epoch",)],
    }
    for path in inner.get(key, ()):
        for name in drawn(("a list of lists", "named values", "nan", "a text", "nothing"), str(path)):
            yield (key, *path), JUNK[name]
    if key in ("state_dict_t", "optimizer_t"):
        tensors = {"other shape": torch.zeros(3), "half": torch.zeros(16, 3, 3, 3).half()}
        where = ("conv0.weight",) if key == "state_dict_t" else ("state", 0, "momentum_buffer")
        for value in tensors.values():
            yield (key, *where), value


CONFIG = {**restore._flags(), **dict.fromkeys(("task", "num_classes", "classes", "file_digest"))}


@pytest.mark.parametrize("name", CONFIG)
def test_an_entry_of_a_checkpoints_configuration(name: str, world: Path, tmp_path: Path) -> None:
    """Whatever it says, an export ends in one line, or in a file that is whole."""
    whole = torch.load(world / "job" / "checkpoint" / "model_best.pt", weights_only=True)
    with somewhere(tmp_path / "here"):
        for what in drawn(JUNK, name):
            value = JUNK[what]
            torch.save(spoilt(whole, ("config", name), value), "model.pt")
            ended = type_in("export", "--checkpoint=model.pt", f"--out={what}.safetensors")
            assert ended.status in (0, 2), ended.err
            assert ended.status == 0 or ("model.pt" in ended.err and len(ended.said) == 1), ended.err
            assert Path(f"{what}.safetensors").exists() == (ended.status == 0)
            if CONFIG[name] is not None and ended.status == 0:
                assert is_taken(CONFIG[name], value), f"{name} {value}"


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry at any depth, of lists the first."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    if isinstance(content, list) and content:
        yield from places(content[0], (*path, 0))


ENTRIES = (
    *(("model",), ("task",), ("classes",), ("classes", 0), ("data",), ("data", "demo"), ("arguments",)),
    *(
        ("arguments", "num_classes"),
        ("scheme",),
        ("preprocessing",),
        ("preprocessing", "mean", 0),
        ("data", "split_seed"),
    ),
    *(("preprocessing", "crop"), ("preprocessing", "resize"), ("preprocessing", "std"), ("preprocessing", "std", 0)),
    *(("scheme", name) for name in ("method", "bitW", "abitW", "act_range", "levels", "stage")),
)


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: ".".join(map(str, path)))
def test_an_entry_of_a_packed_file(path: tuple[Any, ...], world: Path, tmp_path: Path) -> None:
    with safe_open(world / "net.safetensors", "pt") as file:
        text = json.loads(file.metadata()["network"])
    assert path in set(places(text))
    tensors = load_file(world / "net.safetensors")
    with somewhere(tmp_path / "here"):
        Path("photos").symlink_to(world / "photos")
        faults = {**JUNK, "dropped": DROPPED, "absurd": 10**6, "infinite": math.inf}
        for what in ("dropped", *drawn(faults, str(path), 4)):
            value = faults[what]
            packed.write_tensors(tensors, packed.FORMAT, json.dumps(spoilt(text, path, value)), Path("net.safetensors"))
            before = set(os.listdir())
            ended = type_in("predict", "--model=net.safetensors", "photos")
            assert ended.status in (0, 2), (what, ended.err)
            assert "\x1b" not in ended.out, "names are shown escaped"
            if ended.status == 2:
                assert len(ended.said) == 1, ended.err
                assert "net.safetensors" in ended.err
            assert set(os.listdir()) == before


@pytest.mark.parametrize("version", ["9" * 5000, "2", "-1", "", "x", "\x1b[31m\n", "١"])
@pytest.mark.parametrize("entry", ["format", "format_version", "network", "sha256"])
def test_an_entry_around_a_packed_file(entry: str, version: str, world: Path, tmp_path: Path) -> None:
    from safetensors.torch import save

    with safe_open(world / "net.safetensors", "pt") as file:
        metadata = {**file.metadata(), entry: version}
    with somewhere(tmp_path / "here"):
        Path("photos").symlink_to(world / "photos")
        Path("net.safetensors").write_bytes(save(load_file(world / "net.safetensors"), metadata))
        assert "net.safetensors" in refused("predict", "--model=net.safetensors", "photos")
