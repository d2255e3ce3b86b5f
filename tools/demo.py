"""The main job on the embedded demo data: ResNet-20 in float, then quantized from it, a table and a picture."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib import pyplot as plt
from scipy.stats import norm

from common.data.locate import REPOSITORY
from common.runs import checkpoint
from common.runs.annotations import Count, NewFolder
from common.runs.tool import run_tool
from tools import pictures
from tools.arguments import OursBits

LAYER = "layers.4.conv0.weight"


def demo(*, bits: OursBits = 4, out: NewFolder = Path("results/demo"), num_epochs: Count | None = None) -> None:
    """Train ResNet-20 at 32 bits, then at fewer from it, on demo data; print a table and draw a picture.

    Args:
        bits: of weights and activations.
        out: folder of the two runs and of demo.png.
        num_epochs: of each run (default: 15 at 32 bits, then 4).
    """
    folder = out.resolve()
    jobs = {32: folder / "res20_32bit", bits: folder / f"res20_{bits}bit"}
    for width, job in jobs.items():
        source = [] if width == 32 else ["--source_dir", str(folder), "--source_file", "res20_32bit/model_best.pt"]
        command = [sys.executable, "main.py", "--demo", "--bitW", str(width), "--abitW", str(width), *source]
        command += ["--num_epochs", str(num_epochs)] if num_epochs is not None else []
        command += ["--job_dir", str(job), "--resume"]  # a finished run is not trained again
        if status := subprocess.run(command, cwd=REPOSITORY / "single_domain" / "resnet20").returncode:
            sys.exit(status)
    picture = draw(jobs, bits, folder / "demo.png")
    print("\nResNet-20, demo data (not the CIFAR-10 benchmark)\n\n" + table(jobs))
    print(f"picture: {picture}")


def table(jobs: dict[int, Path]) -> str:
    """A Markdown table, one line per run."""
    lines = ["| bits | method | best demo top-1 | at epoch | last demo top-1 |", "|---:|---|---:|---:|---:|"]
    for width, job in jobs.items():
        summary = json.loads((job / "summary.json").read_text())
        best, last = summary["best"], summary["last"]
        method = "float" if width == 32 else f"{summary['method']} (DAQ)"
        lines.append(
            f"| {width} | {method} | {best['test_prec1']:.2f} | {best['epoch'] + 1} | {last['test_prec1']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(jobs: dict[int, Path], bits: int, path: Path) -> Path:
    """Both learning curves, and the grid of one layer over the histogram of its weights."""
    figure, (curves, grid) = plt.subplots(2, 1, figsize=(6, 8))
    histories = {
        f"{width} bits": [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        for width, job in jobs.items()
    }
    pictures.learning_curves(curves, histories)
    state = checkpoint.read(jobs[bits] / "checkpoint" / "model_best.pt")["state_dict_t"]
    weights = state[LAYER].flatten().numpy()
    n = 2**bits - 1
    thresholds = weights.mean() + weights.std(ddof=1) * norm.ppf((np.arange(n) + 0.5) / n)
    pictures.weight_grid(grid, weights, thresholds, 2 * np.arange(n + 1) / n - 1, f"{LAYER}: {n + 1} levels of DAQ")
    figure.suptitle("ResNet-20 on demo data")
    figure.tight_layout()
    return pictures.save(figure, path)


if __name__ == "__main__":
    run_tool(demo)
