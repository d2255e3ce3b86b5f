"""tools/own_network.py in a tiny setting, and its file in the other tools."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.deploy import packed
from tools.evaluate import evaluate
from tools.own_network import own_network


def test_a_network_of_ones_own_becomes_a_file_that_the_tools_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for number in range(45):
        folder = tmp_path / "photos" / ("bike", "mug", "pen")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    own_network(images=tmp_path / "photos", out=tmp_path / "out", epochs=1, tuning=1, img_size=16)
    lines = capsys.readouterr().out.splitlines()
    steps = ["float", "4 bits, converted", "4 bits, calibrated", "4 bits, fine-tuned"]
    assert [line.split(": top-1 ")[0] for line in lines] == steps
    network, description = packed.load(tmp_path / "out" / "q.safetensors")
    assert len(network.get_submodule("conv1").weight.unique()) <= 16
    assert description.classes == ("bike", "mug", "pen")
    evaluate(model=tmp_path / "out" / "q.safetensors", images=tmp_path / "photos")
    assert "(45 images)" in capsys.readouterr().out
