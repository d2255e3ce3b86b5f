"""How large a packed file is: every network at several bit-widths, written and weighed.

python tools/sizes.py --bits 8,4,2
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.deploy import packed
from common.deploy.description import describe
from common.models import NETWORKS
from common.runs.tool import run_tool
from tools.arguments import OursBits


def sizes(*, bits: tuple[OursBits, ...] = (8, 4, 2)) -> None:
    """Print a table of bytes on disk for `ours` with random weights; float32 is the same format at 32 bits.

    Args:
        bits: widths of weights and activations, commas between them.
    """
    widths = (32, *bits)
    print("| network | " + " | ".join("float32" if width == 32 else f"{width} bits" for width in widths) + " |")
    print("|---|" + "---:|" * len(widths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for name, entry in NETWORKS.items():
            row = []
            for width in widths:
                torch.manual_seed(0)
                description = describe({"model": name, "bitW": width, "abitW": width}, entry.num_classes)
                packed.save(description.build(), description, path)
                row.append(f"{path.stat().st_size:,}")
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    run_tool(sizes)
