"""What relation preservation costs: time and peak memory of a DANN training step with and without it, side by side.

python tools/crp_cost.py --img_size 224 --batch 28 --steps 5
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import fire  # noqa: E402
import torch  # noqa: E402

from common.admm.crp import CRP  # noqa: E402
from common.engine.cli import run_cleanly  # noqa: E402
from common.engine.meters import cross_entropy  # noqa: E402
from common.models import build_model  # noqa: E402

CLASSES = 31


def make_step(with_crp: bool, img_size: int, batch: int, bits: int, device: str) -> Callable[[], None]:
    """A full training step of ResNet-50 DANN on random images: two forward passes, backward, SGD, and CRP or not."""
    torch.manual_seed(0)
    model = build_model("resnet50_dann", bitW=bits, abitW=bits).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    source, target = torch.randn(2, batch, 3, img_size, img_size, device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    domains = torch.cat((torch.zeros_like(labels), torch.ones_like(labels)))
    crp = CRP(model.crp_sites(), batch_size=batch, domains=("source", "target")).to(device) if with_crp else None

    def step() -> None:
        outputs = []
        for name, images in (("source", source), ("target", target)):
            if crp is None:
                outputs.append(model(images, 0.5))
            else:
                with crp.collect(name):
                    outputs.append(model(images, 0.5))
        loss = cross_entropy(outputs[0][0], labels)
        loss = loss + cross_entropy(torch.cat([domain for _, domain in outputs]), domains)
        if crp is not None:
            loss = loss + crp.penalty("source") + crp.penalty("target")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if crp is not None:
            crp.update("source")
            crp.update("target")
        if device != "cpu":
            torch.cuda.synchronize()

    return step


def peak_memory(with_crp: bool, img_size: int, batch: int, bits: int, device: str) -> float:
    """MiB at the highest of two steps, in a process of its own: allocated on a CUDA device, resident on a CPU."""
    call = [sys.executable, __file__, "peak", *map(str, (with_crp, img_size, batch, bits, device))]
    result = subprocess.run(call, capture_output=True, text=True, check=True)
    return float(result.stdout)


def peak(with_crp: bool, img_size: int, batch: int, bits: int, device: str) -> None:
    """Print the peak memory of two steps in MiB."""
    step = make_step(with_crp, img_size, batch, bits, device)
    step()
    step()
    if device != "cpu":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(
    img_size: int = 224, batch: int = 28, bits: int = 4, steps: int = 5, device: str = "auto", out: str | None = None
) -> None:
    """Time ``steps`` steps of each kind in turn, after one to warm up; print medians, ratios and peak memory.

    Args:
        batch: images of each domain. out: also write the figures there, as JSON.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"DAQ": False, "DAQ + CRP": True}
    memory = {name: peak_memory(crp, img_size, batch, bits, device) for name, crp in kinds.items()}
    runs = {name: make_step(crp, img_size, batch, bits, device) for name, crp in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for index in range(steps + 1):
        for name, step in runs.items():
            start = time.perf_counter()
            step()
            if index:
                seconds[name].append(time.perf_counter() - start)
    pairs = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"ResNet-50 DANN, {bits} bits, {img_size} x {img_size}, {batch} + {batch} images, {device}")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:10} step {statistics.median(values):.2f} s ({spread}), peak memory {memory[name]:.0f} MiB")
    ratio = memory["DAQ + CRP"] / memory["DAQ"]
    print(f"CRP: {statistics.median(pairs):.3f} times the time (median of pairs), {ratio:.3f} times the memory")
    if out:
        Path(out).write_text(json.dumps({"seconds": seconds, "memory_mib": memory, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(sys.argv[2] == "True", *map(int, sys.argv[3:6]), sys.argv[6])
    else:
        run_cleanly(lambda: fire.Fire(measure))
