"""The classes of your own images, by a checkpoint, a packed file or an ONNX file.

    python tools/predict.py --model resnet20.safetensors photo.jpg drawings/

Images are resized, cropped and normalised as in the evaluation of the file's task.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import fire  # noqa: E402
import torch  # noqa: E402
from export import refuse_unknown  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from common.data.folders import ImageList  # noqa: E402
from common.deploy.files import Classifier, open_file  # noqa: E402
from common.deploy.restore import NETWORK_FLAGS  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402

BATCH = 32


@fire.decorators.SetParseFn(str)
def predict(
    *images: str,
    model: str | None = None,
    top: str = "5",
    network: str | None = None,
    fast: str = "False",
    **flags: str,
) -> None:
    """Print the most probable classes of each image.

    Args:
        images: image files of any format that Pillow reads, and folders of them.
        model: the file. top: how many classes.
        network: name of the network, for a checkpoint that does not record it; --bitW --abitW --method ... as well.
        fast: compile the network to int8 layers for this CPU first (networks of ours): for many images.
    """
    refuse_unknown((), {name: value for name, value in flags.items() if name not in NETWORK_FLAGS})
    if model is None or not images:
        raise UserError("expected --model FILE IMAGE... or a folder of images")
    if not top.isdecimal() or int(top) < 1:
        raise UserError(f"--top {top}: expected a whole number, 1 or more")
    if fast not in ("True", "False"):
        raise UserError(f"--fast {fast}: expected True or False; alone it stands behind the images")
    paths = [path for image in images for path in _found(Path(image))]
    file = open_file(Path(model), fast=fast == "True", model=network, **flags)
    print("\n".join([file.line(), *file.notes]))
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        for path, line in zip(part, answers(file, part, int(top)), strict=True):
            print(f"{path}: {line}")


def answers(file: Classifier, paths: list[Path], top: int) -> Iterator[str]:
    """The ``top`` classes of each image with their probabilities in per cent."""
    classes = file.description.classes
    probabilities = file.logits(prepare(paths, file.description.preprocessing)).softmax(1)
    for row in probabilities:
        values, indices = row.topk(min(top, len(row)))
        pairs = zip(values.tolist(), indices.tolist(), strict=True)
        yield ", ".join(f"{classes[i] if classes else f'class {i}'} {100 * value:.1f} %" for value, i in pairs)


def prepare(paths: list[Path], how: dict) -> Tensor:
    """(B, 3, crop, crop) float32: resized to a square, its centre cropped, normalised."""
    images = ImageList(Path(), tuple(map(str, paths)), (0,) * len(paths), ("unknown",), "images")
    pixels = torch.stack([images.image(index, how["resize"]) for index in range(len(paths))]).permute(0, 3, 1, 2)
    start = round((how["resize"] - how["crop"]) / 2)
    pixels = pixels[..., start : start + how["crop"], start : start + how["crop"]]
    mean, std = (torch.tensor(how[name]).view(3, 1, 1) for name in ("mean", "std"))
    return pixels.float().div_(255).sub_(mean).div_(std)


def _found(path: Path) -> list[Path]:
    """The image itself, or the images in a folder and the folders below it, in sorted order."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; expected an image or a folder of images")
    if not path.is_dir():
        return [path]
    suffixes = Image.registered_extensions()
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())
    if not found:
        raise UserError(f"{path}: no images in it; expected files such as .jpg or .png")
    return found


if __name__ == "__main__":
    run_tool(predict)
