"""What quantization costs: time and peak memory of a full training step of every method, as ratios to float.

    python tools/benchmark.py --network resnet20
    python tools/benchmark.py --network resnet50 --kinds float,ours,ours+crp --modes compiled
    python tools/benchmark.py --profile

All kinds of step run in one process and in turn. Eager steps are compared with eager float, compiled ones with compiled
float. A first compilation takes up to minutes; later calls find it in Inductor's cache.
"""

import importlib.util
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import pictures  # noqa: E402
import torch  # noqa: E402
from timing import measuring  # noqa: E402
from timing.steps import BREVITAS, CRP_KIND, FLOAT, NETWORKS, Setting, make_step  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.quantizers import METHODS  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402

MODES = ("eager", "compiled")
WARM_UP = 2  # steps before the clock: memory is mapped, learned scales are initialised, code is compiled


def benchmark(
    network: str = "resnet20",
    kinds: Any = "all",
    modes: Any = "eager,compiled",
    bits: int = 4,
    batch: int | None = None,
    img_size: int | None = None,
    rounds: int = 9,
    device: str = "auto",
    channels_last: bool = False,
    amp: str | None = None,
    profile: bool = False,
    out: str | None = None,
) -> None:
    """Measure, print a table, and write benchmark.json and benchmark.png.

    Args:
        network: resnet20 (CIFAR-10), or resnet50 (DANN, a batch of each domain).
        kinds: with commas between: float, any method, ours+crp, brevitas (extra "bench"; eager alone). all: those that
            are there.
        modes: eager, compiled, or both.
        batch: default 128 (resnet20) or 28 (resnet50).
        img_size: default 32 (resnet20), or 64 on a CPU and 224 on CUDA (resnet50).
        rounds: timed steps of each kind, after two to warm up.
        device: cpu, cuda, or auto.
        channels_last, amp: as the flags of main.py; of float too.
        profile: print the five dearest operators of every kind as well.
        out: folder of the results (default: results/benchmark/NETWORK_DEVICE).
    """
    torch._dynamo.config.recompile_limit = len(_known_kinds())  # the networks of all kinds share their compiled code
    names, ways = _listed("kinds", kinds, _known_kinds()), _listed("modes", modes, MODES)
    setting = _setting(network, bits, batch, img_size, device, channels_last, amp)
    rows: list[dict[str, Any]] = []
    dearest: dict[str, list[tuple[str, int, float]]] = {}
    steps = {}
    for mode in ways:
        for name in dict.fromkeys((FLOAT, *names)):
            if name == BREVITAS and mode == "compiled":  # it would be compiled anew in every step
                continue
            steps[f"{name}, {mode}"] = step = make_step(name, setting, mode == "compiled")
            for _ in range(WARM_UP + 1):
                step()
    seconds = measuring.interleave(steps, rounds, setting.device)
    memory = {label: measuring.peak_memory(step, setting.device) for label, step in steps.items()}
    for label, values in seconds.items():
        name, mode = label.split(", ")
        ratio, low, high = measuring.ratios(values, seconds[f"{FLOAT}, {mode}"])
        rows.append(
            {
                "kind": name,
                "mode": mode,
                "seconds": values,
                "median": statistics.median(values),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "memory_mib": memory[label],
                "memory_ratio": memory[label] / memory[f"{FLOAT}, {mode}"],
                "images_per_second": setting.images / statistics.median(values),
            }
        )
        if profile:
            dearest[label] = measuring.dearest(steps[label], setting.device)
    title = _title(setting)
    print(title, *table(rows), sep="\n")
    for label, operators in dearest.items():
        shares = ", ".join(f"{name} {share:.0f} % ({calls} calls)" for name, calls, share in operators)
        print(f"dearest of {label}: {shares}")
    folder = Path(str(out)) if out else Path("results", "benchmark", f"{network}_{setting.device}")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"setting": vars(setting), "machine": _machine(setting.device), "rows": rows, "dearest": dearest}
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {draw(rows, title, folder / 'benchmark.png')}, {folder / 'benchmark.json'}")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: per row the median step, its ratio to float with lowest and highest, images per second, peak memory."""
    lines = ["", "| step | ms | times float | images/s | peak MiB | times float |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        spread = f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})" if row["kind"] != FLOAT else ""
        lines.append(
            f"| {row['kind']}, {row['mode']} | {1000 * row['median']:.0f} | {row['ratio']:.2f}{spread} "
            f"| {row['images_per_second']:.0f} | {row['memory_mib']:.0f} | {row['memory_ratio']:.2f} |"
        )
    return [*lines, ""]


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> Path:
    """Bars of the time and the memory of every kind, as ratios to float."""
    labels = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != FLOAT))
    figure, (left, right) = pictures.plt.subplots(1, 2, figsize=(11, 1.6 + 0.42 * len(labels)), sharey=True)
    times = {mode: {} for mode in MODES}  # type: dict[str, dict[str, tuple[float, float, float]]]
    sizes = {mode: {} for mode in MODES}  # type: dict[str, dict[str, tuple[float, float, float]]]
    for row in rows:
        if row["kind"] != FLOAT:
            times[row["mode"]][row["kind"]] = row["ratio"], row["ratio_low"], row["ratio_high"]
            sizes[row["mode"]][row["kind"]] = (row["memory_ratio"],) * 3
    pictures.ratio_bars(left, labels, times, "time of a training step / float")
    pictures.ratio_bars(right, labels, sizes, "peak memory of a training step / float")
    figure.suptitle(title, fontsize=10)
    return pictures.save(figure, path)


def _known_kinds() -> list[str]:
    present = [BREVITAS] if importlib.util.find_spec("brevitas") else []
    return [FLOAT, *METHODS, CRP_KIND, *present]


def _listed(flag: str, words: Any, known: Any) -> list[str]:
    """The words of a flag, as fire reads it: one word, or several with commas between."""
    names = [str(word) for word in words] if isinstance(words, tuple | list) else str(words).split(",")
    if names == ["all"]:
        return list(known)
    for name in names:
        if name not in (*known, BREVITAS):
            raise UserError(f"--{flag} {name}: expected some of {', '.join(known)}, with commas between, or all")
    return names


def _setting(
    network: str, bits: int, batch: int | None, img_size: int | None, device: str, channels_last: bool, amp: str | None
) -> Setting:
    if network not in NETWORKS:
        raise UserError(f"--network {network}: expected {' or '.join(NETWORKS)}")
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: expected auto, cpu, or cuda where torch sees a CUDA device")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if amp not in (None, "bf16", "fp16"):
        raise UserError(f"--amp {amp}: expected bf16 or fp16")
    usual = {"resnet20": (128, 32), "resnet50": (28, 64 if device == "cpu" else 224)}[network]
    return Setting(network, bits, batch or usual[0], img_size or usual[1], device, channels_last, amp)


def _title(setting: Setting) -> str:
    layout = ", channels last" if setting.channels_last else ""
    precision = f", {setting.amp}" if setting.amp else ""
    images = f"batch {setting.batch}" if setting.network == "resnet20" else f"batch {setting.batch} + {setting.batch}"
    where = f"{torch.get_num_threads()} threads" if setting.device == "cpu" else torch.cuda.get_device_name()
    size = f"{setting.img_size} x {setting.img_size}"
    return f"{setting.network}, {size}, {images}, {setting.bits} bits{layout}{precision}, {where}"


def _machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": name if device == "cpu" else torch.cuda.get_device_name(),
    }


if __name__ == "__main__":
    run_tool(benchmark)
