"""What relation preservation costs: time and peak memory of a DANN training step with and without it, side by side.

python tools/crp_cost.py --img_size 224 --batch 28 --steps 5
"""

import json
import statistics
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from timing import measuring  # noqa: E402
from timing.steps import CRP_KIND, OURS, Setting, make_step  # noqa: E402

from common.runs.cli import run_tool  # noqa: E402


def measure(
    img_size: int = 224, batch: int = 28, bits: int = 4, steps: int = 5, device: str = "auto", out: str | None = None
) -> None:
    """Time ``steps`` steps of each kind in turn, after one to warm up; print medians, ratios and peak memory.

    Args:
        batch: images of each domain. out: also write the figures there, as JSON.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting("resnet50", bits, batch, img_size, device)
    kinds = {"DAQ": OURS, "DAQ + CRP": CRP_KIND}
    runs = {name: make_step(kind, setting) for name, kind in kinds.items()}
    memory = {name: measuring.peak_memory(step, device) for name, step in runs.items()}  # warms up as well
    seconds = measuring.interleave(runs, steps, device)
    ratio, _, _ = measuring.ratios(seconds["DAQ + CRP"], seconds["DAQ"])
    print(f"ResNet-50 DANN, {bits} bits, {img_size} x {img_size}, {batch} + {batch} images, {device}")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:10} step {statistics.median(values):.2f} s ({spread}), peak memory {memory[name]:.0f} MiB")
    more = memory["DAQ + CRP"] / memory["DAQ"]
    print(f"CRP: {ratio:.3f} times the time (median of pairs), {more:.3f} times the memory")
    if out:
        Path(out).write_text(json.dumps({"seconds": seconds, "memory_mib": memory, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    run_tool(measure)
