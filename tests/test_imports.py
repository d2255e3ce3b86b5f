"""Importing the core does nothing: no file opened, no argument parsed, no device taken, no random state used."""

import subprocess
import sys

from tests.conftest import REPOSITORY

PROGRAM = """
import pkgutil, sys, importlib, random
import numpy, torch, torchvision_loaded_first
import matplotlib.font_manager  # opens its own cache
import sklearn.datasets, sklearn.decomposition, scipy.io, tqdm, PIL.Image
sys.argv = ["program", "--no-such-flag"]
torch.manual_seed(3); state = torch.get_rng_state()
opened = []
def audit(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc", ".so", "entry_points.txt", "METADATA")):
        opened.append(args[0])
sys.addaudithook(audit)
import common
for module in pkgutil.walk_packages(common.__path__, "common."):
    importlib.import_module(module.name)
assert not opened, opened
assert torch.equal(state, torch.get_rng_state())
assert not torch.cuda.is_initialized()
print("modules", len([m for m in sys.modules if m.startswith("common.")]))
"""


def test_importing_every_module_opens_nothing_and_takes_no_device() -> None:
    program = PROGRAM.replace("torchvision_loaded_first", "common.vision")
    result = subprocess.run([sys.executable, "-B", "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[1]) > 30


def test_whoever_imports_torchvision_behind_common_gets_one_that_works() -> None:
    """Also where its compiled operators are of another torch: here none of them loads."""
    program = """
import common, torch
def refuse(path): raise OSError(path)
torch.ops.load_library = refuse
from torchvision import models
from common.vision_operators import declared
assert declared() and models.resnet18()
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_importing_common_alone_imports_no_torch() -> None:
    program = "import sys, common; assert not {'torch', 'torchvision'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0
