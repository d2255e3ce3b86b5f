"""The doctor: that it finds what the programs find, and says the rest in words that can be typed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import recipes
from common.config.tasks import Task
from tests.conftest import REPOSITORY
from tests.tools.entry import refused, type_in
from tools import doctor
from tools.published import needs
from tools.published.layout import TASKS, folder_of, wanted


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def by_what(task: Task, data_dir: Path) -> dict[str, needs.Need]:
    return {need.what: need for need in needs.needs_of(task, str(data_dir))}


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """DANN on Office-31 with both of its programs in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(needs, "_backbone", lambda: needs.Need("backbone", True, "", ""))
    for variant in ("cdf_alignment", "daq_crp"):
        touch(tmp_path / "dann_office" / variant / "main.py")
    return replace(TASKS["dann_office"], folder=tmp_path / "dann_office" / "daq_crp")


def test_without_any_package_it_says_which_and_what_to_type() -> None:
    result = subprocess.run([sys.executable, "-S", "tools/doctor.py"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    for part in ("torch is not installed", "fire is not installed", doctor.INSTALL):
        assert part in result.stderr
    assert "GiB free" in result.stdout


def test_it_asks_for_what_the_project_depends_on() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [name + bounds for name, bounds in doctor.requirements()] == listed


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.13.1+cu128", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.9.1", ">=2.11,<2.14", False),
        ("10", ">=10", True),
        ("2.11.0", ">=2.11", True),
    ],
)
def test_versions_compare_as_numbers(version: str, bounds: str, expected: bool) -> None:
    assert doctor.within(version, bounds) is expected


def test_a_torch_that_is_too_old_is_named_with_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.7.1" if name == "torch" else installed(name))
    (problem,) = doctor.packages()
    assert problem == f"torch 1.7.1 is installed, expected {dict(doctor.requirements())['torch']}"


def test_data_are_seen_where_the_programs_read_them(office: Task, tmp_path: Path) -> None:
    data = tmp_path / "data"
    sets = {
        "CIFAR-10": (TASKS["resnet20"], ["cifar10/cifar-10-batches-py/batches.meta"]),
        "MNIST": (TASKS["dann_digits"], ["mnist/MNIST/raw/train-images-idx3-ubyte.gz"]),
        "MNIST-M": (TASKS["dann_digits"], ["mnistm/mnist_m_train.pt"]),
        "SVHN": (TASKS["dann_digits"], ["svhn/train_32x32.mat"]),
        "SynDigits": (TASKS["dann_digits"], ["syndigit/imgs_train/0/a.png"]),
        "Office-31": (office, [f"office31/{domain}/images/mug/a.jpg" for domain in ("amazon", "dslr", "webcam")]),
    }
    for what, (task, files) in sets.items():
        for file in files:
            missing = by_what(task, data)[what]
            assert not missing.here
            assert str(data) in missing.where
            assert missing.command
            touch(data / file)
        assert by_what(task, data)[what].here


def test_weights_count_when_every_program_of_the_task_finds_them(office: Task, tmp_path: Path) -> None:
    names = wanted(office)

    def here() -> str:
        return by_what(office, tmp_path)["weights to start from"].where.split(",")[0]

    assert here() == f"0 of {len(names)} here"
    touch(office.folder / "pretrained" / names[0])  # which the other program does not look into
    assert here() == f"0 of {len(names)} here"
    for count, name in enumerate(names, 1):
        touch(folder_of(office) / name)
        assert here() == f"{count} of {len(names)} here"


def test_missing_weights_name_the_command_and_the_files_as_published(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "densenet40" / "main.py")
    task = replace(TASKS["densenet40"], folder=tmp_path / "densenet40")
    need = by_what(task, tmp_path)["weights to start from"]
    assert need.command == "python tools/fetch_pretrained.py download --task densenet40"
    assert all(name in need.where for name in wanted(task))
    assert len(wanted(task)) == len({row.pretrained_bits for row in recipes.TABLES["densenet40"]})


def test_an_unknown_task_is_refused_before_anything_is_said() -> None:
    assert "--task: expected one of resnet20" in refused("doctor", "--task", "resnet21")
    assert type_in("doctor", "--task", "resnet21")[1] == ""
