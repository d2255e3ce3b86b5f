"""How large a packed file is: every network at several bit-widths, written and weighed.

python tools/sizes.py --bits 8,4,2
python tools/sizes.py --models torchvision:vit_b_16,torchvision:mobilenet_v3_small --bits 4   # every layer quantized
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.conversion.calibrate import calibrate
from common.deploy import packed
from common.deploy.description import describe
from common.models import NETWORKS, known_network
from common.runs.tool import run_tool
from tools.arguments import OursBits

IMAGENET_CLASSES = 1000


def sizes(*, bits: tuple[OursBits, ...] = (8, 4, 2), models: tuple[str, ...] = tuple(NETWORKS)) -> None:
    """Print a table of bytes on disk for `ours` with random weights; float32 is the same format at 32 bits.

    Args:
        bits: widths of weights and activations, commas between them.
        models: networks, of others by torchvision:NAME, timm:NAME or FILE.py:FUNCTION: all their layers are quantized.
    """
    widths = (32, *bits)
    print("| network | " + " | ".join("float32" if width == 32 else f"{width} bits" for width in widths) + " |")
    print("|---|" + "---:|" * len(widths))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        for name in models:
            entry, row = known_network(name), []
            for width in widths:
                torch.manual_seed(0)
                config = {"model": name, "bitW": width, "abitW": width, "quant_linear": entry is None}
                description = describe(config, entry.num_classes if entry is not None else IMAGENET_CLASSES)
                network = description.build()
                if entry is None:
                    calibrate(network, [torch.randn(2, *description.image_shape)])
                packed.save(network, description, path)
                row.append(f"{path.stat().st_size:,}")
            print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    run_tool(sizes)
