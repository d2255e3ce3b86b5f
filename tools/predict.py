"""The classes of your own images, by a checkpoint, a packed file or an ONNX file.

    python tools/predict.py --model resnet20.safetensors photo.jpg drawings/

Images are resized, cropped and normalised as in the evaluation of the file's task.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from common.adaptation.realign import PRIOR, realign
from common.deploy.files import open_file
from common.errors import UserError
from common.runs.annotations import Count
from common.runs.tool import run_tool
from tools.arguments import Prior
from tools.deployed.flags import of_network
from tools.deployed.images import BATCH, images_at, prepare


def predict(
    *images: Path,
    model: Path,
    top: Count = 5,
    network: str | None = None,
    fast: bool = False,
    alignment: Path | None = None,
    online: bool = False,
    prior: Prior = PRIOR,
    **flags: Any,
) -> None:
    """Print the most probable classes of each image.

    Args:
        images: image files of any format that Pillow reads, and folders of them.
        model: the file.
        top: how many classes.
        network: name of the network, for a checkpoint that does not record it; --bitW --abitW --method ... as well.
        fast: let OpenVINO compute on the CPU, a network as its integer graph: for many images.
        alignment: a file of tools/realign.py to apply.
        online: re-align as the images come: each batch of 32 moves the statistics by its own before it is classified.
        prior: of --online: the statistics so far count as so many images beside a batch.
    """
    if not images:
        raise UserError("expected --model FILE IMAGE... or a folder of images")
    paths = [path for image in images for path in images_at(Path(image))]
    file = open_file(model, fast=fast, alignment=alignment, model=network, **flags)
    if online and file.network is None:
        raise UserError(f"--online: {file.form} has no statistics to move here; give a checkpoint or a packed file")
    print("\n".join([file.line(), *file.notes]))
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        batch = prepare(part, file.description.preprocessing)
        if online and file.network:
            found = realign(file.network, batch, prior)
            logits = found.logits
            if warning := found.warning():
                print(warning, file=sys.stderr)
        else:
            logits = file.logits(batch)
        for path, line in zip(part, answers(file.description.classes, logits, top), strict=True):
            print(f"{path}: {line}")


def answers(classes: tuple[str, ...], logits: Tensor, top: int) -> Iterator[str]:
    """The ``top`` classes of each image with their probabilities in per cent."""
    for row in logits.softmax(1):
        values, indices = row.topk(min(top, len(row)))
        pairs = zip(values.tolist(), indices.tolist(), strict=True)
        yield ", ".join(f"{classes[i] if classes else f'class {i}'} {100 * value:.1f} %" for value, i in pairs)


if __name__ == "__main__":
    run_tool(predict, of_network)
