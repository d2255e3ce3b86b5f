"""What relation preservation costs: time and peak memory of a DANN training step with and without it, side by side.

python tools/crp_cost.py --img_size 224 --batch 28 --steps 5
"""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.runs.annotations import Count, NewFile
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.arguments import Batch, Device, OursBits, Side, chosen_device
from tools.timing import measuring
from tools.timing.steps import CRP_KIND, OURS, Setting, make_step


def measure(
    *,
    img_size: Side = 224,
    batch: Batch = 28,
    bits: OursBits = 4,
    steps: Count = 5,
    device: Device = "auto",
    out: NewFile | None = None,
) -> None:
    """Time ``steps`` steps of each kind in turn, after one to warm up; print medians, ratios and peak memory.

    Args:
        img_size: side of the images.
        batch: images of each domain.
        bits: of weights and activations.
        steps: timed steps of each kind.
        device: cpu, cuda, or auto.
        out: also write the figures there, as JSON.
    """
    setting = Setting("resnet50_dann", bits, batch, img_size, chosen_device(device))
    kinds = {"DAQ": OURS, "DAQ + CRP": CRP_KIND}
    runs = {name: make_step(kind, setting) for name, kind in kinds.items()}
    memory = {name: measuring.peak_memory(step, setting.device) for name, step in runs.items()}  # warms up as well
    seconds = measuring.interleave(runs, steps, setting.device)
    ratio, _, _ = measuring.ratios(seconds["DAQ + CRP"], seconds["DAQ"])
    print(f"ResNet-50 DANN, {bits} bits, {img_size} x {img_size}, {batch} + {batch} images, {setting.device}")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:10} step {statistics.median(values):.2f} s ({spread}), peak memory {memory[name]:.0f} MiB")
    more = memory["DAQ + CRP"] / memory["DAQ"]
    print(f"CRP: {ratio:.3f} times the time (median of pairs), {more:.3f} times the memory")
    if out:
        figures = {"seconds": seconds, "memory_mib": memory, "threads": torch.get_num_threads()}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(figures))


if __name__ == "__main__":
    run_tool(measure)
