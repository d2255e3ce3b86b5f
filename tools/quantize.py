"""Quantize a torchvision classifier: convert, calibrate on images of your own, report, save.

    python tools/quantize.py --model torchvision:resnet18 --weights resnet18.pth --images photos --out quantized.pt

The file holds the latent float weights beside their quantizers' state and is a start for training as well.
"""

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from common.adaptation import offsets
from common.conversion import left_float
from common.conversion.calibrate import calibrate
from common.conversion.sensitivity import sensitivity as measure_sensitivity
from common.data.folder_batches import FolderBatches
from common.data.folders import ImageList, read_domain
from common.data.seeding import generator
from common.data.splits import partition
from common.errors import UserError
from common.flags import shown
from common.measure import effective_bits
from common.measure.coverage import coverage
from common.models import build_model
from common.models.foreign import TORCHVISION, is_foreign
from common.quantizers import METHODS
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantLayer
from common.runs import checkpoint
from common.runs.annotations import Count, NewFile, Seed, one_of
from common.runs.start import try_network
from common.runs.tool import run_tool
from tools.arguments import Batch, Bits, Side

MEASURED = 2  # batches for the sensitivity, which runs them four times for each quantizer
NONE = Path("none")  # in place of a file of weights


def foreign_name(word: str) -> str:
    if not is_foreign(word):
        raise ArgumentTypeError(f"expected {TORCHVISION}NAME, timm:NAME or FILE.py:FUNCTION, not {shown(word)}")
    return word


def quantize(
    *,
    model: Annotated[str, foreign_name],
    images: Path,
    out: NewFile,
    weights: Path = NONE,
    method: Annotated[str, one_of(*METHODS)] = "ours",
    bitW: Bits = 4,
    abitW: Bits = 4,
    quant_linear: bool = False,
    calibrate: Count = 8,
    sensitivity: bool = False,
    batch_size: Batch = 32,
    img_size: Side = 224,
    num_classes: Count | None = None,
    seed: Seed = 0,
) -> None:
    """Convert a classifier, calibrate it on part of a folder of images and compare it with float on the rest.

    Args:
        model: torchvision:NAME, such as torchvision:resnet18, timm:NAME, or FILE.py:FUNCTION that returns it.
        images: folder of class folders; 80 % of each class is for calibration, the rest for the report.
        out: file to write.
        weights: file of float weights with the network's names, or none for those that it is built with.
        method: quantization method.
        bitW: bits of the weights; 32 is float.
        abitW: bits of the activations; 32 is float.
        quant_linear: quantize Linear layers and convolutions without BatchNorm too.
        calibrate: batches for the statistics of BatchNorm and the learned steps.
        sensitivity: also print each quantizer's share in the error, measured on two of these batches.
        batch_size: images per batch.
        img_size: side of the images.
        num_classes: outputs of the network (default: the number of class folders).
        seed: of random weights and of the choice of calibration images.
    """
    folder = images.absolute()
    found = read_domain(folder.parent, folder.name)
    classes = num_classes or len(found.classes)
    if classes < len(found.classes):
        raise UserError(f"--num_classes {classes}: {folder} holds {len(found.classes)} classes")
    torch.manual_seed(seed)
    floating = build_model(model, num_classes=classes)
    try_network(floating.eval(), model, len(found.classes), img_size, 1)
    network = build_model(model, method, bitW, abitW, num_classes=classes, quant_linear=quant_linear)
    if weights == NONE:
        print("--weights none: the weights that the network is built with")
        network.load_state_dict(floating.state_dict(), strict=False)
    else:
        for line in checkpoint.load_weights(floating, weights)[0].lines(weights):
            print(line)
        checkpoint.load_weights(network, weights, method)
    batches = run(network, floating, found, calibrate, batch_size, img_size, seed, quant_linear)
    config = {"model": model, "method": method, "bitW": bitW, "abitW": abitW, "num_classes": classes, "seed": seed}
    config |= {"quant_linear": quant_linear}
    config |= {"img_size": img_size, "classes": list(found.classes), "demo": found.demo}
    out.parent.mkdir(parents=True, exist_ok=True)
    moved = offsets.measure(network, torch.cat([images for images, _ in batches])[: offsets.IMAGES])
    checkpoint.save({"state_dict_t": network.state_dict(), "config": config, offsets.KEY: moved}, out)
    print(f"wrote {out}")
    if sensitivity:
        print_sensitivity(network, batches[:MEASURED], "demo " if found.demo else "")


def run(
    network: Any, floating: nn.Module, found: ImageList, count: int, size: int, side: int, seed: int, linear: bool
) -> list[tuple[Tensor, Tensor]]:
    """Calibrate the network and print what was quantized and how it compares; the batches of the calibration."""
    parts = partition(found, seed=1)
    chosen = torch.randperm(len(parts.train), generator=generator("calibration", seed)).tolist()[: count * size]
    print(f"{found.domain}: {len(chosen)} images to calibrate, {len(parts.test)} to compare ({parts.protocol})")
    batches = list(batches_of(parts.train.subset(chosen), size, side))
    if len(batches[-1][1]) < 2 and len(batches) > 1:
        batches.pop()
    calibrate(network, batches)
    kinds = (nn.Conv2d, nn.Linear) if linear else (nn.Conv2d,)
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    quantized = sum(isinstance(module, QuantLayer) for module in layers)
    print(f"quantized {quantized} of {len(layers)} {'layers' if linear else 'convolutions'}")
    print(coverage(network, batches[0][0][:1]).line())
    for name, reason in left_float(network).items():
        print(f"left float: {name}: {reason}")
    for line in effective_bits.summary_lines(effective_bits.measure(network, batches[0][0])):
        print(line)
    compare(network, floating, batches_of(parts.test, size, side), "demo " if found.demo else "")
    return batches


def print_sensitivity(network: nn.Module, batches: list[tuple[Tensor, Tensor]], demo: str) -> None:
    count = sum(isinstance(module, Quantizer) for module in network.modules())
    images = sum(len(labels) for _, labels in batches)
    print(f"sensitivity of {count} quantizers, on {images} {demo}images of the calibration", flush=True)
    print(
        "error: distance of the logits from the float network's, relative to these; every row has BatchNorm statistics"
    )
    print("of its own, from these images", flush=True)
    print(measure_sensitivity(network, batches).table())


def batches_of(images: ImageList, size: int, side: int) -> FolderBatches:
    return FolderBatches(image_list=images, batch_size=size, img_size=side, train=False)


@torch.no_grad()
def compare(network: nn.Module, floating: nn.Module, batches: FolderBatches, demo: str) -> None:
    """Print top-1 of both networks and the share of images that both put into one class."""
    network.eval()
    floating.eval()
    rows: list[tuple[Tensor, Tensor, Tensor]] = [
        (floating(images).argmax(1), network(images).argmax(1), labels) for images, labels in batches
    ]
    one, other, labels = (torch.cat(column) for column in zip(*rows, strict=True))
    for name, classes in (("float", one), ("quantized", other)):
        print(f"{demo}top-1 {name}: {100 * float((classes == labels).float().mean()):.2f}")
    print(f"{demo}images with one class in both: {100 * float((one == other).float().mean()):.2f} %")


if __name__ == "__main__":
    run_tool(quantize)
