"""What quantization costs: time and peak memory of a full training step of every method, as ratios to float.

    python tools/benchmark.py --model resnet20_quant
    python tools/benchmark.py --model torchvision:vit_b_16 --quant_linear --kinds ours,lsq --batch 8
    python tools/benchmark.py --model resnet50_dann --kinds float,ours,ours+crp --modes compiled
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
from typing import Annotated, Any, Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from common.errors import UserError
from common.models import build_model, known_network
from common.models.foreign import is_foreign
from common.quantizers import METHODS, make_scheme
from common.runs.annotations import Count, NewFolder, one_of
from common.runs.start import try_network
from common.runs.tool import run_tool
from tools import pictures
from tools.arguments import Batch, Bits, Device, Side, chosen_device
from tools.timing import measuring
from tools.timing.steps import BREVITAS, CRP_KIND, FLOAT, Setting, make_step

Mode = Literal["eager", "compiled"]
KINDS = (FLOAT, *METHODS, CRP_KIND, BREVITAS)
WARM_UP = 2  # steps before the clock: memory is mapped, learned scales are initialised, code is compiled


def benchmark(
    *,
    model: str = "resnet20_quant",
    kinds: tuple[Annotated[str, one_of(*KINDS, "all")], ...] = ("all",),
    modes: tuple[Mode, ...] = ("eager", "compiled"),
    bits: Bits = 4,
    batch: Batch | None = None,
    img_size: Side | None = None,
    rounds: Count = 9,
    device: Device = "auto",
    channels_last: bool = False,
    amp: Literal["bf16", "fp16"] | None = None,
    quant_linear: bool = False,
    profile: bool = False,
    out: NewFolder | None = None,
) -> None:
    """Measure, print a table, and write benchmark.json and benchmark.png.

    Args:
        model: a network of the paper, such as resnet50_dann (a step of DANN, on a batch of each domain), or a
            classifier: torchvision:NAME, timm:NAME, FILE.py:FUNCTION.
        kinds: with commas between: float, any method, ours+crp, brevitas (extra "bench"; eager alone). all: those that
            are there.
        modes: eager, compiled, or both.
        bits: of weights and activations.
        batch: images of each domain (default: 128 of CIFAR's and digits' networks, 28 of others).
        img_size: default: the network's own, as in the paper; of those that take photographs 64 on a CPU, 224 on CUDA.
        rounds: timed steps of each kind, after two to warm up.
        device: cpu, cuda, or auto.
        channels_last: as the flag of main.py; of float too.
        amp: as the flag of main.py; of float too.
        quant_linear: as the flag of main.py, for a network of others.
        profile: print the five dearest operators of every kind as well.
        out: folder of the results (default: results/benchmark/MODEL_DEVICE).
    """
    torch._dynamo.config.recompile_limit = len(KINDS)  # the networks of all kinds share their compiled code
    names = dict.fromkeys(name for kind in kinds for name in (_present_kinds(model) if kind == "all" else [kind]))
    for name in names:
        if name in METHODS:
            make_scheme(name, bitW=bits, abitW=bits)  # which refuses bits that the method does not define
    setting = _setting(model, bits, batch, img_size, device, channels_last, amp, quant_linear)
    rows: list[dict[str, Any]] = []
    dearest: dict[str, list[tuple[str, int, float]]] = {}
    steps = {}
    for mode in dict.fromkeys(modes):
        for name in dict.fromkeys((FLOAT, *names)):
            if name == BREVITAS and mode == "compiled":  # it would be compiled anew in every step
                continue
            steps[f"{name}, {mode}"] = step = make_step(name, setting, mode == "compiled")
            for _ in range(WARM_UP + 1):
                step()
    seconds = measuring.interleave(steps, rounds, setting.device)
    memory = {label: measuring.peak_memory(step, setting.device) for label, step in steps.items()}
    for label, values in seconds.items():
        name, way = label.split(", ")
        ratio, low, high = measuring.ratios(values, seconds[f"{FLOAT}, {way}"])
        rows.append(
            {
                "kind": name,
                "mode": way,
                "seconds": values,
                "median": statistics.median(values),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "memory_mib": memory[label],
                "memory_ratio": memory[label] / memory[f"{FLOAT}, {way}"],
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
    folder = out or Path("results", "benchmark", f"{Path(model).name.replace(':', '_')}_{setting.device}")
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
    figure, (upper, lower) = pictures.plt.subplots(2, 1, figsize=(6, 2 * (1.4 + 0.42 * len(labels))))
    times = {mode: {} for mode in get_args(Mode)}  # type: dict[str, dict[str, tuple[float, float, float]]]
    sizes = {mode: {} for mode in get_args(Mode)}  # type: dict[str, dict[str, tuple[float, float, float]]]
    for row in rows:
        if row["kind"] != FLOAT:
            times[row["mode"]][row["kind"]] = row["ratio"], row["ratio_low"], row["ratio_high"]
            sizes[row["mode"]][row["kind"]] = (row["memory_ratio"],) * 3
    pictures.ratio_bars(upper, labels, times, "time of a training step / float")
    pictures.ratio_bars(lower, labels, sizes, "peak memory of a training step / float")
    lower.get_legend().remove()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return pictures.save(figure, path)


def _present_kinds(model: str) -> list[str]:
    brevitas = importlib.util.find_spec("brevitas") and not is_foreign(model)
    return [name for name in KINDS if name != BREVITAS or brevitas]


def _setting(
    model: str,
    bits: int,
    batch: int | None,
    img_size: int | None,
    device: str,
    channels_last: bool,
    amp: str | None,
    quant_linear: bool,
) -> Setting:
    device, entry = chosen_device(device), known_network(model)
    if entry is not None and quant_linear:
        raise UserError(f"--quant_linear: {model} keeps the layers of the paper; expected a network of others")
    size, side = (28, 224) if entry is None else (128, entry.img_size)
    if entry is not None and entry.data == "office":
        size, side = 28, 64 if device == "cpu" else 224
    batch, side = batch or size, img_size or side
    setting = Setting(model, bits, batch, side, device, channels_last, amp, quant_linear)
    if entry is None:
        network = build_model(model, num_classes=setting.classes, quant_linear=quant_linear)
        try_network(network, model, setting.classes, side, batch)
    return setting


def _title(setting: Setting) -> str:
    layout = ", channels last" if setting.channels_last else ""
    precision = f", {setting.amp}" if setting.amp else ""
    images = " + ".join([str(setting.batch)] * len(setting.domains))
    where = f"{torch.get_num_threads()} threads" if setting.device == "cpu" else torch.cuda.get_device_name()
    size = f"{setting.img_size} x {setting.img_size}"
    return f"{setting.model}, {size}, batch {images}, {setting.bits} bits{layout}{precision}, {where}"


def _machine(device: str) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": name if device == "cpu" else torch.cuda.get_device_name(),
    }


if __name__ == "__main__":
    run_tool(benchmark)
