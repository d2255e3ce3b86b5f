"""What this machine has for the tasks, what is missing for which of them, and the command that gets it.

    python tools/doctor.py [--task resnet20] [--data_dir DIR]

It needs nothing but Python itself to say which packages are missing.
"""

import importlib
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

if sys.version_info < (3, 10):  # noqa: UP036
    print(f"{sys.argv[0]}: error: Python {platform.python_version()}: expected 3.10 or newer", file=sys.stderr)
    sys.exit(2)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config.recipes import TABLES
from common.data.locate import REPOSITORY
from common.errors import UserError
from common.runs.annotations import one_of
from common.runs.tool import run_bare
from common.vision_operators import declared

INSTALL = 'python -m pip install -e ".[fetch]"'


def doctor(*, task: Annotated[str, one_of(*TABLES)] | None = None, data_dir: Path | None = None) -> None:
    """What this machine has for the tasks, what is missing for which of them, and the command that gets it.

    Args:
        task: one task (default: all).
        data_dir: where the data are, as the tasks' programs take it.
    """
    print("\n".join(machine()))
    if missing := packages():
        raise UserError(f"{'; '.join(missing)}. Type, in {REPOSITORY}: {INSTALL}")
    print("\n".join(accelerator()))
    from tools.published.layout import TASKS
    from tools.published.needs import needs_of  # everything from here on needs the packages

    for name in [task] if task else TASKS:
        needs = needs_of(TASKS[name], None if data_dir is None else str(data_dir))
        complete = all(need.here for need in needs)
        print(f"\n{name}: {'everything is here' if complete else 'runs with --demo; with the real data it needs'}")
        for need in needs:
            print(f"  {need.what}: {need.where}")
            if not need.here:
                print(f"      {need.command}")
    print(f"\nCommands are typed in {REPOSITORY}.")
    print(
        "Weights can be trained, too: in the task's folder, python main.py --bitW 32, then the table's widths in turn."
    )


def machine() -> list[str]:
    """Python, processors and disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(REPOSITORY).free / 2**30
    return [
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"{os.cpu_count()} processors, {memory:.0f} GiB of memory",
        f"disk: {free:.1f} GiB free for {REPOSITORY}",
    ]


def packages() -> list[str]:
    """What pyproject.toml asks for and this Python has not, or has in another version."""
    missing = []
    for name, bounds in requirements():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(f"{name} is not installed")
            continue
        if not within(version, bounds):
            missing.append(f"{name} {version} is installed, expected {bounds}")
    return missing


def requirements() -> list[tuple[str, str]]:
    """(name, bounds) of the packages that every task needs."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^\s*"([\w-]+)([^"]*)"', block, re.MULTILINE)


def within(version: str, bounds: str) -> bool:
    """Whether a version lies in bounds such as ">=2.11,<2.14".

    >>> within("2.13.1+cu128", ">=2.11,<2.14"), within("2.14.0", ">=2.11,<2.14"), within("2.9", ">=2.11")
    (True, False, False)
    """

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text.split("+")[0])[:3]))

    compared = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    return all(
        compared[sign](numbers(version), numbers(bound)) for sign, bound in re.findall(r"(>=|<)([\d.]+)", bounds)
    )


def imported(package: str) -> Any:
    """
    Raises:
        UserError: it is installed, and cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{package} is installed and cannot be imported ({why}); install another build of it") from None


def accelerator() -> list[str]:
    """torch, and what it can compute on; raises UserError as ``imported``."""
    torch = imported("torch")
    imported("torchvision")
    beside = "; not compiled for this torch, its missing operators are declared" if declared() else ""
    lines = [f"torch {torch.__version__}, torchvision {metadata.version('torchvision')}{beside}", shipping()]
    if torch.cuda.is_available():
        kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            lines.append(f"{kind}, --gpus {index}: {device.name}, {device.total_memory / 2**30:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        why = "is a build without CUDA" if torch.version.cuda is None else "cannot use it; is the driver too old?"
        lines.append(f"CUDA: none. There is an NVIDIA driver, but this torch {why} (https://pytorch.org/get-started)")
    else:
        lines.append("CUDA: none; everything runs on the processor")
    return lines


def shipping() -> str:
    """The packages of the extra "deploy"."""
    found = {}
    for name in ("safetensors", "onnx", "onnxruntime", "openvino"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return "files to ship: " + ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    run_bare(doctor)
