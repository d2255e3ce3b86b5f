"""Time, peak memory and dearest operators of a step."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def interleave(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every step, ``rounds`` times each, in turn: what slows the machine for a while slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest ratio of the two steps of a round."""
    pairs = [own / other for own, other in zip(seconds, reference, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def peak_memory(step: Step, device: str) -> float:
    """MiB that a step allocates at its highest, beyond what it finds and leaves: activations, gradients, temporaries.

    Counted by the allocator on a CUDA device, and from the profiler's record of every allocation on a CPU.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    results = record.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    held = highest = 0
    for _, change in changes:
        held += change
        highest = max(highest, held)
    return highest / 2**20


def dearest(step: Step, device: str, count: int = 5) -> list[tuple[str, int, float]]:
    """The operators with the most time of their own: name, calls, share of the step in per cent."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as record:
        step()
        _wait(device)
    kind = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    averages = [(event.key, event.count, float(getattr(event, kind))) for event in record.key_averages()]
    total = sum(spent for _, _, spent in averages)
    averages.sort(key=lambda entry: -entry[2])
    return [(name, calls, 100 * spent / total) for name, calls, spent in averages[:count]]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
