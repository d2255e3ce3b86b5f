"""A trained checkpoint as a file to ship: quantized weights as codes of k bits.

    python tools/export.py --checkpoint experiment/ours/res20_4bit/checkpoint/model_best.pt --out resnet20.safetensors

Network, bits and method come from the run that the checkpoint records; typed flags win. A published file records none:

    python tools/export.py --checkpoint FILE --model resnet20_quant --bitW 4 --abitW 4 --out FILE.safetensors
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from torch import nn  # noqa: E402

from common.deploy import packed  # noqa: E402
from common.deploy.description import Description  # noqa: E402
from common.deploy.files import ONNX, PACKED, PROGRAM  # noqa: E402
from common.deploy.onnx.export import export_onnx  # noqa: E402
from common.deploy.program import save_program  # noqa: E402
from common.deploy.restore import NETWORK_FLAGS, restore  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402


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
    *words: Any,
    checkpoint: str | None = None,
    out: str | None = None,
    format: str = "packed",
    model: str | None = None,
    **flags: Any,
) -> None:
    """Write the evaluation network of a checkpoint to a file.

    Args:
        checkpoint: a model_best.pt or last.pt, or a published file. out: the file to write.
        format: packed (.safetensors), onnx (opset 21, for onnxruntime), or pt2 (torch.export, float32; for
            torch.export.load, which is for files one trusts).
        model: the network; flags: --method --bitW --abitW --act_range --levels --stage --img_size --quant_shortcut, as
            the programs have them. What is not typed is as in the checkpoint's run.
    """
    refuse_unknown(words, {name: value for name, value in flags.items() if name not in NETWORK_FLAGS})
    if checkpoint is None or out is None:
        raise UserError("expected --checkpoint FILE --out FILE")
    if format not in FORMATS:
        raise UserError(f"--format {format}: expected {' or '.join(FORMATS)}")
    suffix, write = FORMATS[format]
    source, path = Path(str(checkpoint)), Path(str(out))
    if source.suffix in (PACKED, ONNX, PROGRAM):
        raise UserError(f"--checkpoint {source}: already exported; expected a checkpoint such as model_best.pt")
    if path.suffix != suffix or path.is_dir():
        raise UserError(f"--out {path}: expected the name of a file that ends in {suffix}")
    network, description, notes = restore(source, model=model, **flags)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(network, description, path)
    for note in notes:
        print(note)
    floats = 4 * sum(parameter.numel() for parameter in network.parameters())
    size = path.stat().st_size
    print(f"{path}: {description.line()}; {size:,} bytes, {size / floats:.3f} of its parameters in float32")


def refuse_unknown(words: tuple[Any, ...], unknown: dict[str, Any]) -> None:
    """
    Raises:
        UserError: a command line has words or flags that its program does not know.
    """
    for word in (*words, *(f"--{name}" for name in unknown)):
        raise UserError(f"unknown {word}; --help lists the flags")


if __name__ == "__main__":
    run_tool(export)
