"""Demo sets, smaller than the real demo's, written once for all tests that only read them."""

import shutil
from pathlib import Path

import pytest

from common.data.demo import cifar10, digits


@pytest.fixture(scope="session")
def cifar10_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "TRAIN_IMAGES", 500)
        patch.setattr(cifar10, "TEST_IMAGES", 200)
        return cifar10.write(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def digits_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "TRAIN_IMAGES", 100)
        patch.setattr(digits, "TEST_IMAGES", 120)
        for name in digits.TITLES:
            digits.write(root, name)
    return root


@pytest.fixture
def cifar10_copy(cifar10_demo: Path, tmp_path: Path) -> Path:
    """A demo folder to damage."""
    return Path(shutil.copytree(cifar10_demo, tmp_path / cifar10_demo.name))


@pytest.fixture
def digits_copy(digits_demo: Path, tmp_path: Path) -> Path:
    """All demo digits, to damage."""
    return Path(shutil.copytree(digits_demo, tmp_path / "digits"))
