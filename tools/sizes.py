"""How large a packed file is: every network at several bit-widths, written and weighed.

python tools/sizes.py --bits 8,4,2
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from runs.command_line import positive, words_of  # noqa: E402

from common.deploy import packed  # noqa: E402
from common.deploy.description import describe  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.models import MODELS  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402


def sizes(bits: Any = "8,4,2", **unknown: Any) -> None:
    """Print a table of bytes on disk for `ours` with random weights; float32 is the same format at 32 bits.

    Args:
        bits: widths of weights and activations, commas between them.
    """
    if unknown:
        raise UserError(f"unknown flag --{next(iter(unknown))}; --help lists the flags")
    widths = [32, *(positive("bits", word) for word in words_of(bits))]
    print("| network | " + " | ".join("float32" if width == 32 else f"{width} bits" for width in widths) + " |")
    print("|---|" + "---:|" * len(widths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for name, entry in MODELS.items():
            row = []
            for width in widths:
                torch.manual_seed(0)
                description = describe({"model": name, "bitW": width, "abitW": width}, entry.num_classes)
                packed.save(description.build(), description, path)
                row.append(f"{path.stat().st_size:,}")
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    run_tool(sizes)
