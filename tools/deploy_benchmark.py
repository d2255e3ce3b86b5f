"""Latency on a CPU beside what one would pick instead, in turn in one process: float32, bf16, int8 of other tools.

    OMP_NUM_THREADS=1 python tools/deploy_benchmark.py --out speed.jsonl --picture speed.png

A network at a size of the batch has a process of its own, which gives back what the engines took. What --out holds
already is not measured again.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from common.deploy.extras import need
from common.errors import UserError
from common.flags import natural, number, shown
from common.models import build_model
from common.quantizers import make_scheme
from common.reading import read_objects
from common.runs.annotations import Count, NewFile, one_of
from common.runs.tool import run_tool
from common.writing import write_whole
from tools import pictures
from tools.timing.engines import float_runs, integer_run
from tools.timing.measuring import interleave, ratios

NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet20": ("resnet20_quant", 32, {}),
    "resnet18": ("torchvision:resnet18", 224, {"num_classes": 1000}),
    "resnet50": ("resnet50_dann", 224, {"quant_shortcut": True}),
    "mobilenet_v2": ("torchvision:mobilenet_v2", 224, {"num_classes": 1000}),
}
BATCHES = {"resnet20": (1, 128)}  # of the others 1 and 16
KEYS = {"network", "batch", "form", "ms", "times_faster", "threads"}  # of a line of --out
FORMS = ("ours:8", "ours:4", "ours:3", "ours:2", "lsq:4", "centroid:4")


def form(text: str) -> str:
    """METHOD:BITS that the method has, of weights and activations."""
    method, _, bits = text.partition(":")
    try:
        make_scheme(method, bitW=natural(bits), abitW=natural(bits))
    except (UserError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"expected METHOD:BITS, not {shown(text)} ({error})") from None
    return text


BatchSize = Annotated[int, number(int, 1, 10**5, "a whole number of images")]


@torch.no_grad()
def random_network(name: str, method: str, bits: int) -> tuple[nn.Module, int]:
    """A network with random weights, random scales and shifts of its BatchNorms and the statistics of random images,
    and its image size. With the scale of zero that some BatchNorms start from, an engine would drop whole branches."""
    model_name, size, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model: Any = build_model(model_name, method=method, bitW=bits, abitW=bits, **arguments).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    features = getattr(model, "features", model)  # of a network with a discriminator, and no module
    forward = model if isinstance(features, nn.Module) else features
    forward(torch.randn(4, 3, min(size, 64), min(size, 64)))
    return model.eval(), size


def deploy_benchmark(
    *,
    networks: tuple[Annotated[str, one_of(*NETWORKS)], ...] = tuple(NETWORKS),
    forms: tuple[Annotated[str, form], ...] = FORMS,
    batches: tuple[BatchSize, ...] = (),
    repeats: Count = 20,
    threads: Count = 1,
    out: NewFile | None = None,
    picture: NewFile | None = None,
) -> None:
    """Print a table of medians, and how many times faster each is than the fastest float32 of its column.

    Ratios are medians of the ratios within a round.

    Args:
        networks: of resnet20 (32 x 32 images), resnet18, resnet50 and mobilenet_v2 (224 x 224).
        forms: METHOD:BITS of weights and activations, commas between them.
        batches: images at a time; by default 1 and 16, of resnet20 1 and 128.
        repeats: timed rounds, after three to warm up.
        threads: of each engine.
        out: also add the figures to that file, a line of JSON each; networks and batches that it has are taken from it.
        picture: also draw them there, as PNG.
    """
    known = read_objects(out, "--out of an earlier run") if out is not None else []
    if any(not row.keys() >= KEYS for row in known):
        raise UserError(f"--out {out}: not a file of this program; expected a new one, or --out of an earlier run")
    rows: list[dict[str, Any]] = []
    for name in networks:
        for batch in batches or BATCHES.get(name, (1, 16)):
            found = [row for row in known if (row["network"], row["batch"], row["threads"]) == (name, batch, threads)]
            if not found:
                found = in_a_process(name, batch, forms, repeats, threads)
                if out is not None:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    known += found
                    write_whole(out, "".join(f"{json.dumps(row)}\n" for row in known))
            rows += found
    print("\n".join(table(rows)))
    if picture is not None:
        pictures.save(drawn(rows), picture)


def in_a_process(name: str, batch: int, forms: tuple[str, ...], repeats: int, threads: int) -> list[dict[str, Any]]:
    """``row_of`` in a process of its own.

    Raises:
        UserError: it was killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(row_of, name, batch, forms, repeats, threads).result()
        except BrokenProcessPool:
            raise UserError(
                f"{name}, batch {batch}: its process was killed, as for want of memory; fewer --forms need less, and "
                "what --out has by now is kept"
            ) from None


def row_of(name: str, batch: int, forms: tuple[str, ...], repeats: int, threads: int) -> list[dict[str, Any]]:
    """Milliseconds of every form of a network at a size of the batch."""
    network, size = random_network(name, "ours", 32)
    images = torch.randn(batch, 3, size, size)
    runs: dict[str, Callable[[Tensor], Any]] = float_runs(network, images, threads)
    for form in forms:
        method, _, bits = form.partition(":")
        runs[f"{method} {bits} bits"] = integer_run(random_network(name, method, int(bits))[0], images, threads)
    steps = {key: partial(run, images) for key, run in runs.items()}
    interleave(steps, 3, "cpu")
    seconds = interleave(steps, repeats, "cpu")
    best = min((key for key in seconds if key.startswith("float32")), key=lambda key: statistics.median(seconds[key]))
    about = {"repeats": repeats, "threads": threads, "openvino": need("openvino").__version__}
    return [
        {
            "network": name,
            "batch": batch,
            "form": key,
            "ms": round(1e3 * statistics.median(values), 3),
            "times_faster": round(ratios(seconds[best], values)[0], 3),
            **about,
        }
        for key, values in seconds.items()
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each form in Markdown, a column for each network and size of the batch."""
    columns = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))
    found = {
        (row["network"], row["batch"], row["form"]): f"{_digits(row['ms'])} ({row['times_faster']:.2f} x)"
        for row in rows
    }
    heads = [f"{name}, batch {batch}" for name, batch in columns]
    lines = [" | ".join(["| form", *heads]) + " |", "|---" + "|---:" * len(columns) + "|"]
    for one in dict.fromkeys(row["form"] for row in rows):
        lines.append(" | ".join([f"| {one}", *(found.get((*column, one), "") for column in columns)]) + " |")
    return lines


def _digits(ms: float) -> str:
    return f"{ms:.{2 if ms < 10 else 1 if ms < 100 else 0}f}"


def drawn(rows: list[dict[str, Any]]) -> Any:
    """Bars of how many times faster than the best float32, a panel for each network and size of the batch."""
    panels = list(dict.fromkeys((row["network"], row["batch"]) for row in rows))
    figure, axes = pictures.plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels) + 1.5, 4), sharey=True, squeeze=False
    )
    for axis, (name, batch) in zip(axes[0], panels, strict=True):
        found = [row for row in rows if (row["network"], row["batch"]) == (name, batch)][::-1]
        axis.barh([row["form"] for row in found], [row["times_faster"] for row in found], color="#4477aa")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"{name}, batch {batch}", fontsize=9)
        axis.set_xlabel("times faster", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    run_tool(deploy_benchmark)
