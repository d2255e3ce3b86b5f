"""Latency of the exact int8 path against float32 with folded BatchNorm, interleaved in one process, on a CPU.

OMP_NUM_THREADS=2 python tools/deploy_benchmark.py --bits 8,4 --batches 1,16 --out latency.json
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from common.deploy.graph import trace
from common.flags import number
from common.models import build_model
from common.runs.annotations import Count, NewFile, one_of
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.arguments import OursBits

NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet20": ("resnet20_quant", 32, {}),
    "resnet50": ("resnet50_dann", 224, {"quant_shortcut": True}),
    "resnet18": ("torchvision:resnet18", 224, {"num_classes": 1000}),
}
BatchSize = Annotated[int, number(int, 1, 10**5, "a whole number of images")]


@torch.no_grad()
def random_network(name: str, bits: int) -> tuple[nn.Module, int]:
    """A network with random weights and the BatchNorm statistics of random images, and its image size."""
    model_name, size, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model: Any = build_model(model_name, bitW=bits, abitW=bits, **arguments).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    getattr(model, "features", model)(torch.randn(4, 3, min(size, 64), min(size, 64)))
    return model.eval(), size


def float_network(name: str, image_shape: tuple[int, ...]) -> nn.Module:
    """The float32 network with BatchNorm folded into its convolutions, compiled as the fast one is."""
    from common.deploy.integer.fast import CompiledNetwork  # here, since it brings Inductor, which takes a second

    folded = fuse(trace(random_network(name, 32)[0]))
    return CompiledNetwork(folded, image_shape)


def time_in_turn(runs: dict[str, Callable[[Tensor], Any]], images: Tensor, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every run, ``repeats`` times one after another, after three rounds to warm up."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for index in range(repeats + 3):
            for name, run in runs.items():
                start = time.perf_counter()
                run(images)
                if index >= 3:
                    milliseconds[name].append(1e3 * (time.perf_counter() - start))
    return milliseconds


def deploy_benchmark(
    *,
    networks: tuple[Annotated[str, one_of(*NETWORKS)], ...] = ("resnet20", "resnet50"),
    bits: tuple[OursBits, ...] = (8, 4),
    batches: tuple[BatchSize, ...] = (1, 16),
    repeats: Count = 20,
    out: NewFile | None = None,
) -> None:
    """Print the table of medians; ratios are medians of the ratios within a round.

    Args:
        networks: of resnet20 (32 x 32 images), resnet50 and torchvision's resnet18 (224 x 224).
        bits: of weights and activations, commas between them.
        batches: images at a time, commas between them.
        repeats: timed rounds, after three to warm up.
        out: also write the figures there, as JSON.
    """
    from common.deploy.integer.fast import fast_network

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, random weights")
    print("| network | batch | float32 (ms) | " + " | ".join(f"{k} bits (ms), times faster" for k in bits) + " |")
    print("|---|---:|---:|" + "---:|" * len(bits))
    rows = []
    for name in networks:
        for batch in batches:
            size = NETWORKS[name][1]
            images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
            runs: dict[str, Callable[[Tensor], Any]] = {"float32": float_network(name, images.shape)}
            for k in bits:
                runs[f"{k} bits"] = fast_network(random_network(name, k)[0], (batch, 3, size, size))
            milliseconds = time_in_turn(runs, images, repeats)
            base = milliseconds["float32"]
            cells = [f"{statistics.median(base):.2f}"]
            for key, values in list(milliseconds.items())[1:]:
                ratio = statistics.median(a / b for a, b in zip(base, values, strict=True))
                cells.append(f"{statistics.median(values):.2f}, {ratio:.2f}")
                rows.append({"network": name, "batch": batch, "path": key, "times_faster": ratio, "ms": values})
            rows.append({"network": name, "batch": batch, "path": "float32", "times_faster": 1.0, "ms": base})
            print(f"| {name} | {batch} | " + " | ".join(cells) + " |", flush=True)
    if out:
        content = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(content))


if __name__ == "__main__":
    run_tool(deploy_benchmark)
