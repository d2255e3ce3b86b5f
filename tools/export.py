"""A trained checkpoint as a file to ship: quantized weights as codes of k bits.

    python tools/export.py --checkpoint experiment/ours/res20_4bit/checkpoint/model_best.pt --out resnet20.safetensors

Network, bits and method come from the run that the checkpoint records; typed flags win. A published file records none:

    python tools/export.py --checkpoint FILE --model resnet20_quant --bitW 4 --abitW 4 --out FILE.safetensors
"""

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from common.deploy import alignment as alignments
from common.deploy.check import compared
from common.deploy.description import Description
from common.deploy.extras import NotInstalled
from common.deploy.formats import FORMATS, Format
from common.deploy.graph import ClassLogits
from common.deploy.restore import restore
from common.errors import UserError
from common.measure.coverage import coverage
from common.runs.annotations import NewFile, one_of
from common.runs.tool import run_tool
from tools.deployed.flags import of_network


def export(
    *,
    checkpoint: Path,
    out: NewFile,
    format: Annotated[str, one_of(*FORMATS)] = "packed",
    model: str | None = None,
    float_names: bool = False,
    alignment: Path | None = None,
    **flags: Any,
) -> None:
    """Write the evaluation network of a checkpoint to a file.

    Args:
        checkpoint: a model_best.pt or last.pt, or a published file.
        out: the file to write.
        format: packed (.safetensors), onnx (opset 21, for onnxruntime), onnx-int8 (the integer graph, .onnx), openvino
            (the same, .xml and .bin), qonnx (integers and MultiThreshold, for FINN and hls4ml), or pt2 (torch.export,
            float32; for torch.export.load, which is for files one trusts).
        model: the network, for a checkpoint that does not record it; FILE.py:FUNCTION has to be typed always.
        float_names: name every layer that stayed float.
        alignment: a file of tools/realign.py, whose statistics the written network has.
        flags: --method --bitW --abitW --act_range --levels --stage --img_size --quant_shortcut --quant_linear, as the
            programs have them. What is not typed is as in the checkpoint's run.
    """
    wanted, checkpoint, out = FORMATS[format], Path(checkpoint), Path(out)
    if checkpoint.suffix in [one.suffix for one in FORMATS.values()]:
        raise UserError(f"--checkpoint {checkpoint}: already exported; expected a checkpoint such as model_best.pt")
    if out.suffix != wanted.suffix:
        raise UserError(f"--out {out}: expected the name of a file that ends in {wanted.suffix}")
    network, description, notes = restore(checkpoint, model=model, **flags)
    if alignment is not None:
        aligned = alignments.load(alignment)
        aligned.apply(network, alignment)
        notes.append(f"{alignment}: re-aligned by {aligned.line()}")
    out.parent.mkdir(parents=True, exist_ok=True)
    wanted.write(network, description, out)
    for note in notes:
        print(note)
    covered = coverage(network, torch.zeros(1, *description.image_shape))
    floats = 4 * sum(parameter.numel() for parameter in network.parameters())
    files = wanted.files(out)
    size = sum(file.stat().st_size for file in files)
    print(f"{', '.join(map(str, files))}: {description.line()}")
    print(f"{size:,} bytes, {size / floats:.3f} of its parameters in float32")
    print(covered.line(), *(covered.lines() if float_names else []), sep="\n")
    if wanted.read is not None:
        print(_check(wanted, network, description, out, model))


def _check(wanted: Format, network: nn.Module, description: Description, out: Path, model: str | None) -> str:
    """What the file computes against the network, in a line; a warning if what runs it is not installed."""
    assert wanted.read is not None
    try:
        computes, _ = wanted.read(out, model)
    except NotInstalled as error:
        return f"warning: not compared with the network it was made from: {error}"
    if isinstance(computes, nn.Module):
        computes = ClassLogits(computes)
    return f"{wanted.engine or 'torch'} from the file: {compared(network, computes, description.image_shape)}"


if __name__ == "__main__":
    run_tool(export, of_network)
