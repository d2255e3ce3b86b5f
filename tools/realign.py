"""A shipped network set right for images that look different, by a few dozen of them without labels: an alignment file.

    python tools/realign.py --model resnet20.safetensors --images photos --out photos.alignment.safetensors
    python tools/predict.py --model resnet20.safetensors --alignment photos.alignment.safetensors photo.jpg

The file holds statistics alone and belongs to this network: its checkpoint, its packed file and its ONNX file take it,
another network's refuse it. tools/evaluate.py and tools/export.py take it too. Labels are never read; where the images
lie in class folders, the accuracy before and after is printed, on those that were not used.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from common.adaptation.realign import PRIOR, realign
from common.deploy.alignment import SUFFIX, Alignment, base_digest
from common.deploy.files import Classifier, open_file
from common.errors import UserError
from common.flags import number
from common.runs.annotations import NewFile
from common.runs.tool import run_tool
from tools.arguments import Prior
from tools.deployed.flags import of_network
from tools.deployed.images import BATCH, images_at, prepare

MOST = 256
MostImages = Annotated[int, number(int, 1, 10**5, "a whole number of images")]


def realign_file(
    *,
    model: Path,
    images: Path,
    out: NewFile,
    images_most: MostImages = MOST,
    prior: Prior = PRIOR,
    network: str | None = None,
    **flags: Any,
) -> None:
    """Write the statistics that the images give the network.

    Args:
        model: a checkpoint or a packed file.
        images: a folder of images, or of folders of them.
        out: the file to write; its name ends in .alignment.safetensors.
        images_most: how many images to take, spread evenly over the folder by name.
        prior: the network's own statistics count as so many images; 0: those of the new images alone.
        network: name of the network, for a checkpoint that does not record it; --bitW --abitW --method ... as well.
    """
    if not out.name.endswith(SUFFIX):
        raise UserError(f"--out {out}: expected the name of a file that ends in {SUFFIX}")
    paths = images_at(images)
    chosen = (
        [paths[place * len(paths) // images_most] for place in range(images_most)]
        if len(paths) > images_most
        else paths
    )
    taken = set(chosen)
    others = [path for path in paths if path not in taken]
    file = open_file(model, model=network, **flags)
    if file.network is None:
        raise UserError(
            f"--model {model}: {file.form} has no statistics to move here; give a checkpoint or a packed file"
        )
    print("\n".join([file.line(), *file.notes]))
    tested = labelled(file, others or chosen)
    before = accuracy(file, *tested) if tested else 0.0
    found = realign(file.network, prepare(chosen, file.description.preprocessing), prior)
    alignment = Alignment(found.statistics, base_digest(file.network), len(chosen), str(images), prior)
    out.parent.mkdir(parents=True, exist_ok=True)
    alignment.save(out)
    if tested:
        which = f"the other {len(others)}" if others else f"the same {len(chosen)}"
        print(f"top-1 on {which} images: {before:.3f} before, {accuracy(file, *tested):.3f} after re-alignment")
    if warning := found.warning():
        print(warning)
    print(f"{out}: {alignment.line()}; {out.stat().st_size:,} bytes")


def labelled(file: Classifier, paths: list[Path]) -> tuple[list[Path], list[int]] | None:
    """The paths and their classes, if each lies in a folder that is called as a class."""
    classes = {name: place for place, name in enumerate(file.description.classes)}
    names = [path.absolute().parent.name for path in paths]
    return (paths, [classes[name] for name in names]) if all(name in classes for name in names) else None


def accuracy(file: Classifier, paths: list[Path], labels: list[int]) -> float:
    """Top-1 in per cent."""
    parts = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    found: list[Tensor] = [file.logits(prepare(part, file.description.preprocessing)).argmax(1) for part in parts]
    right = sum(int(one) == label for one, label in zip((one for part in found for one in part), labels, strict=True))
    return 100 * right / len(labels)


if __name__ == "__main__":
    run_tool(realign_file, of_network)
