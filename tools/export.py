"""A trained checkpoint as a file to ship: quantized weights as codes of k bits.

    python tools/export.py --checkpoint experiment/ours/res20_4bit/checkpoint/model_best.pt --out resnet20.safetensors

Network, bits and method come from the run that the checkpoint records; typed flags win. A published file records none:

    python tools/export.py --checkpoint FILE --model resnet20_quant --bitW 4 --abitW 4 --out FILE.safetensors
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from common.deploy import packed
from common.deploy.description import Description
from common.deploy.files import ONNX, PACKED, PROGRAM
from common.deploy.onnx.export import export_onnx
from common.deploy.program import save_program
from common.deploy.restore import restore
from common.errors import UserError
from common.runs.annotations import NewFile, one_of
from common.runs.tool import run_tool
from tools.deployed.flags import of_network


def save_onnx(network: nn.Module, description: Description, path: Path) -> None:
    export_onnx(network, path, description.image_shape, {"network": description.to_json()})


def save_pt2(network: nn.Module, description: Description, path: Path) -> None:
    save_program(network, path, description.image_shape, {"network": description.to_json()})


FORMATS: dict[str, tuple[str, Callable[..., None]]] = {  # suffix, and (network, description, path) -> file
    "packed": (PACKED, packed.save),
    "onnx": (ONNX, save_onnx),
    "pt2": (PROGRAM, save_pt2),
}


def export(
    *,
    checkpoint: Path,
    out: NewFile,
    format: Annotated[str, one_of(*FORMATS)] = "packed",
    model: str | None = None,
    **flags: Any,
) -> None:
    """Write the evaluation network of a checkpoint to a file.

    Args:
        checkpoint: a model_best.pt or last.pt, or a published file.
        out: the file to write.
        format: packed (.safetensors), onnx (opset 21, for onnxruntime), or pt2 (torch.export, float32; for
            torch.export.load, which is for files one trusts).
        model: the network, for a checkpoint that does not record it.
        flags: --method --bitW --abitW --act_range --levels --stage --img_size --quant_shortcut, as the programs have
            them. What is not typed is as in the checkpoint's run.
    """
    suffix, write = FORMATS[format]
    if checkpoint.suffix in (PACKED, ONNX, PROGRAM):
        raise UserError(f"--checkpoint {checkpoint}: already exported; expected a checkpoint such as model_best.pt")
    if out.suffix != suffix:
        raise UserError(f"--out {out}: expected the name of a file that ends in {suffix}")
    network, description, notes = restore(checkpoint, model=model, **flags)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(network, description, out)
    for note in notes:
        print(note)
    floats = 4 * sum(parameter.numel() for parameter in network.parameters())
    size = out.stat().st_size
    print(f"{out}: {description.line()}; {size:,} bytes, {size / floats:.3f} of its parameters in float32")


if __name__ == "__main__":
    run_tool(export, of_network)
