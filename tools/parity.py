"""Do the deployed forms of a network compute what was trained? Fake-quantized, integer and ONNX, side by side.

python tools/parity.py --checkpoint experiment/ours/res20_4bit/checkpoint/model_best.pt --data_dir data
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from common.data import cifar10  # noqa: E402
from common.data.demo import cifar10 as demo_cifar10  # noqa: E402
from common.data.locate import data_folder  # noqa: E402
from common.data.tensors import TensorBatches  # noqa: E402
from common.deploy.graph import ClassLogits  # noqa: E402
from common.deploy.integer import integer_network  # noqa: E402
from common.deploy.onnx import onnx_model, open_session  # noqa: E402
from common.deploy.parity import LayerParity, compare_layers, compare_onnx_layers  # noqa: E402
from common.engine import checkpoint  # noqa: E402
from common.engine.cli import run_tool  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.models import build_model  # noqa: E402

SCHEME = ("method", "bitW", "abitW", "act_range", "levels")
LAYER_IMAGES = 8


def load(path: Path) -> tuple[nn.Module, bool]:
    """The network of a single-domain checkpoint, by the configuration it carries, and whether it saw demo data."""
    config = checkpoint.read(path).get("config") or {}
    model_name = config.get("target_model")
    if model_name is None or any(key not in config for key in SCHEME):
        raise UserError(f"{path}: carries no configuration of a single-domain run; expected a model_best.pt of one")
    model = build_model(model_name, **{key: config[key] for key in SCHEME})
    checkpoint.load_weights(model, path, config["method"])
    return model.eval(), bool(config.get("demo"))


def report(name: str, rows: list[LayerParity]) -> None:
    different, codes = sum(row.different for row in rows), sum(row.codes for row in rows)
    worst = max(rows, key=lambda row: row.different / row.codes)
    print(
        f"{name}: {different} of {codes} codes differ ({100 * different / codes:.5f} %) in {len(rows)} layers; most in "
        f"{worst.layer}, {worst.different} of {worst.codes}; at most {max(row.distance for row in rows):.1e} of a step "
        "from the threshold"
    )


@torch.no_grad()
def main(checkpoint: str, data_dir: str | None = None, images: int = 0, layers: bool = False) -> None:
    """Compare on the test set of the checkpoint's run (CIFAR-10, or its demo stand-in).

    Args:
        images: how many test images; 0: all. layers: also print every layer.
    """
    network, demo = load(Path(checkpoint))
    folder = data_folder(data_dir, REPOSITORY, "demo" if demo else "cifar10")
    root = demo_cifar10.write(folder / "demo" / "cifar10") if demo else folder / "cifar10"
    test = cifar10.load(root, download=False)[1]
    batches = TensorBatches(image_set=test, batch_size=100, mean=cifar10.MEAN, std=cifar10.STD, seed=0, shuffle=False)
    word = "demo " if demo else ""

    sample = next(iter(batches))[0][:LAYER_IMAGES]
    proto = onnx_model(network, (3, 32, 32), {})
    rows = compare_layers(network, sample)
    print(
        f"layer by layer, identical input codes, {len(sample)} {word}test images, against the fake-quantized network:"
    )
    report("integer", rows)
    report("integer, fake-quantized in float64", compare_layers(network, sample, float64=True))
    report("ONNX", compare_onnx_layers(network, proto, sample))
    for row in rows if layers else []:
        print(f"  {row.layer}: {row.different} of {row.codes}")

    session = open_session(proto.SerializeToString(), torch.get_num_threads())
    forms = {
        "fake-quantized": ClassLogits(network).eval(),
        "integer": integer_network(network),
        "ONNX": lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
    }
    classes: dict[str, list[torch.Tensor]] = {name: [] for name in forms}
    labels: list[torch.Tensor] = []
    for x, y in batches:
        if images and sum(map(len, labels)) >= images:
            break
        labels.append(y)
        for name, form in forms.items():
            classes[name].append(form(x).argmax(1))
    truth, reference = torch.cat(labels), torch.cat(classes["fake-quantized"])
    print(f"\n| form | {word}top-1 (%) | same class (%) |\n|---|---:|---:|")
    for name, parts in classes.items():
        found = torch.cat(parts)
        top1, same = (100 * (found == other).double().mean() for other in (truth, reference))
        print(f"| {name} | {top1:.2f} | {same:.2f} |")
    print(f"\n{len(truth)} {word}test images")


if __name__ == "__main__":
    run_tool(main)
