"""The recipes of README.md, typed as written, one after another in one folder; and the demo.

Two things are not as written, so that they take seconds: IMAGES and NEW_IMAGES are small folders that are made here,
and --num_epochs is 1. Environments are not installed: `pip` and `tox` are not run, and `alignq NAME` is the program of
which tests/test_command.py shows that it takes its place.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.command import program
from tests.conftest import REPOSITORY, run_program
from tests.documented import Typed, typed_in_blocks

README = (REPOSITORY / "README.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES = ["Your own images", "Your own network", "Ship it, and run the file without this project"]
RECIPES += ["Adapt a shipped file to a new domain"]
CLASSES = ("cat", "cup", "dog")


def section(title: str) -> str:
    return re.split(r"^#+ ", README.split(f"# {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def photographs(folder: Path, count: int, brightness: int) -> None:
    """Noise in which one colour is stronger than the others."""
    rng = np.random.default_rng(brightness)
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = rng.integers(0, 100, (40, 48, 3))
        pixels[..., CLASSES.index(folder.name) if folder.name in CLASSES else index % 3] += brightness
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.jpg")


def type_in(typed: Typed, folder: Path) -> str:
    """What a command of a recipe prints."""
    name, *words = typed.words
    assert name == "alignq"
    words = [str(folder / word.split("/", 3)[3]) if word.startswith("/home/me/") else word for word in words]
    if "--num_epochs" in words:
        words[words.index("--num_epochs") + 1] = "1"
    file, *own = program(words)
    ended = run_program(Path(file), own, folder)
    assert ended.returncode == 0, f"{typed}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the commands of every recipe print, typed in turn; "folder" is where."""
    folder = tmp_path_factory.mktemp("clone")
    for part, count in (("train", 12), ("test", 4)):
        for name in CLASSES:
            photographs(folder / "images" / part / name, count, 100)
    photographs(folder / "new_images", 12, 150)
    found: dict[str, list[str]] = {"folder": [str(folder)]}
    for title in RECIPES:
        text = section(title).replace("$HOME", "/home/me")
        if title == "Your own network":
            (folder / "own.py").write_text(*PYTHON.findall(text))
        found[title] = [type_in(typed, folder) for typed in typed_in_blocks(text, {"IMAGES": "/home/me/images"})]
    return found


def test_the_recipes_run_one_after_another(said: dict[str, list[str]]) -> None:
    folder = Path(*said["folder"])
    assert "weights 4, effective 4.0" in said["Your own images"][-1]
    assert f"wrote {Path('runs/own_w4.pt')}" in said["Your own network"][-1]
    assert all("8 of 8 classes the same" in text for text in said[RECIPES[2]])
    assert len(said[RECIPES[3]][-1].splitlines()) >= 12
    assert {path.name for path in folder.glob("model.*")} == {"model.safetensors", "model.onnx"}


def test_the_file_runs_without_this_project_and_says_what_predict_says(said: dict[str, list[str]]) -> None:
    folder = Path(*said["folder"])
    (code,) = PYTHON.findall(section(RECIPES[2]))
    script = folder / "classify.py"
    script.write_text(f"import sys\n{code}\nassert 'torch' not in sys.modules\n")
    for name in CLASSES:
        photo = folder / "photo.jpg"
        photo.write_bytes((folder / "images" / "test" / name / "0.jpg").read_bytes())
        ours = type_in(Typed(["alignq", "predict", "--model", "model.onnx", "--top", "1", "photo.jpg"], None), folder)
        assert run_alone(script, folder) in ours.splitlines()[-1]


def run_alone(script: Path, folder: Path) -> str:
    ended = subprocess.run([sys.executable, script.name], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_the_demo_ends_in_a_table_and_a_picture(tmp_path: Path) -> None:
    ended = run_program(
        REPOSITORY / "tools" / "demo.py", ["--num_epochs", "1", "--out", str(tmp_path / "demo")], tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\| 4 \| ours \(DAQ\) \| \d+\.\d\d \| 1 \|", ended.stdout)
    assert (tmp_path / "demo" / "demo.png").stat().st_size > 10_000
