"""Runs on synthetic images, for the tests of the loop."""

from pathlib import Path

import pytest

from tests.engine.synthetic import Lab, make_lab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return make_lab(tmp_path, monkeypatch)
