"""FILE.py:FUNCTION that is no network, or none of these images and classes: one line, before the first step."""

from pathlib import Path

import pytest
import torch

from common.models.foreign import float_network
from tests.faults.conftest import RESNET20, TRAIN
from tests.faults.harness import refused, somewhere

HEAD = "from torch import nn\n\n"
LAYERS = "nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()"
FORWARD = f"""class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential({LAYERS}, nn.Linear(4, 10))

    def forward(self, x):
        return %s

make = Net
"""
FILES = {
    "an end at import": "raise SystemExit(3)",
    "an end when called": "def make():\n    raise SystemExit(3)",
    "for ever deeper": "def make():\n    return make()",
    "no Python": "\x00\xff{",
    "another error": "1 / 0",
    "no such function": "",
    "no function": "make = 3",
    "no network": "def make():\n    return 3",
    "arguments of its own": "def make(width):\n    return width",
    "no parameters": f"{HEAD}make = nn.Flatten",
    "one class too few": f"{HEAD}def make():\n    return nn.Sequential({LAYERS}, nn.Linear(4, 9))",
    "no logits": f"{HEAD}def make():\n    return nn.Sequential({LAYERS[:-15]})",
    "two results": HEAD + FORWARD % "self.layers(x), 3",
    "an error in it": HEAD + FORWARD % "{}['x']",
    "a size in it": HEAD + FORWARD % "self.layers(x.view(-1, 3, 7, 7))",
}


CASES = [(name, command) for name in FILES for command in ("train", "quantize")]
CASES.remove(("one class too few", "quantize"))  # there the network says how many there are


@pytest.mark.parametrize(("name", "command"), CASES)
def test_a_file_that_makes_no_network_for_these_data(name: str, command: str, world: Path, tmp_path: Path) -> None:
    with somewhere(tmp_path / "here"):
        for place in ("data", "photos"):
            Path(place).symlink_to(world / place)
        Path("own.py").write_text(FILES[name])
        if command == "train":
            line = refused(RESNET20, *TRAIN, "--num_epochs=1", "--model=own.py:make", "--job_dir=new")
        else:
            line = refused("quantize", "--model=own.py:make", "--images=photos", "--img_size=32", "--out=new.pt")
        assert any(name in line for name in ("own.py", "Net: ", "Flatten "))


def test_weights_that_a_file_gives_its_network_are_no_warning_where_shapes_alone_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 10))\n"
        "    net[1].load_state_dict({'weight': torch.ones(10, 3, device='cpu'), 'bias': torch.ones(10, device='cpu')})\n    return net\n"
    )
    with torch.device("meta"):
        float_network("own.py:make", 10)
    assert not recwarn.list
