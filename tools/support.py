"""Which networks, methods and bits have which form to ship, and how exact it is: a table for docs/shipping.md.

    python tools/support.py torchvision:mobilenet_v3_small timm:resnet18 --methods ours,lsq --bits 4,2

Weights are random, BatchNorms too, statistics those of images of noise, and every layer is quantized. ONNX runs layer
by layer on torch's own codes; a cell says how many codes in a million then differ from torch's. The integer form is a
yes or a no.
"""

import sys
import warnings
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from common.conversion import quantize_model
from common.conversion.calibrate import calibrate
from common.deploy.integer.network import integer_network
from common.deploy.onnx.export import onnx_model
from common.errors import UserError
from common.flags import number
from common.measure.parity import codes_alone, compare_onnx, total
from common.models.foreign import float_network
from common.quantizers import METHODS
from common.runs.annotations import Count, one_of, several
from common.runs.tool import run_tool


def support(
    *networks: str,
    methods: Annotated[tuple[str, ...], several(one_of(*METHODS))] = ("ours", "lsq", "uniform"),
    bits: Annotated[tuple[int, ...], several(number(int, 1, 8))] = (8, 4, 2),
    side: Count = 64,
) -> None:
    """Print the table.

    Args:
        networks: torchvision:NAME, timm:NAME or FILE.py:FUNCTION.
        methods: names with commas between them. bits: widths of weights and activations likewise.
        side: of the images.
    """
    if not networks:
        raise UserError("expected networks such as torchvision:mobilenet_v3_small")
    columns = [(method, width) for method in methods for width in bits]
    print("| network | " + " | ".join(f"{method} {width}" for method, width in columns) + " | integer |")
    print("|---" * (len(columns) + 2) + "|")
    for name in networks:
        cells = [cell(name, method, width, side) for method, width in columns]
        print(f"| {name} | " + " | ".join(cells) + f" | {integer(name, side)} |", flush=True)


def quantized(name: str, method: str, bits: int, side: int) -> nn.Module:
    torch.manual_seed(0)
    network = float_network(name, 10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = quantize_model(network, method, bits, bits, linear=True, all_convs=True)
    return calibrate(network, [noise(side)]).eval()


def noise(side: int) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))


def cell(name: str, method: str, bits: int, side: int) -> str:
    """Differing codes in a million, or "no" with the reason on standard error."""
    try:
        network = quantized(name, method, bits, side)
        model = onnx_model(network, (3, side, side), {})
        row = total("all", compare_onnx(network, model, noise(side), codes_alone(network, noise(side))))
    except UserError as error:
        print(f"{name}, {method}, {bits} bits: {error}", file=sys.stderr)
        return "no"
    return f"{1e6 * row.different / row.codes:.1f}"


def integer(name: str, side: int) -> str:
    try:
        integer_network(quantized(name, "ours", 4, side))
    except UserError:
        return "no"
    return "yes"


if __name__ == "__main__":
    run_tool(support)
