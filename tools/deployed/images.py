"""Images of the user's own as a network wants them."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from common.data.folders import ImageList
from common.errors import UserError

BATCH = 32


def prepare(paths: list[Path], how: dict[str, Any]) -> Tensor:
    """(B, 3, crop, crop) float32: resized to a square, its centre cropped, normalised."""
    images = ImageList(Path(), tuple(map(str, paths)), (0,) * len(paths), ("unknown",), "images")
    pixels = torch.stack([images.image(index, how["resize"]) for index in range(len(paths))]).permute(0, 3, 1, 2)
    start = round((how["resize"] - how["crop"]) / 2)
    pixels = pixels[..., start : start + how["crop"], start : start + how["crop"]]
    mean, std = (torch.tensor(how[name]).view(3, 1, 1) for name in ("mean", "std"))
    return pixels.float().div_(255).sub_(mean).div_(std)


def images_at(path: Path) -> list[Path]:
    """The image itself, or the images in a folder and the folders below it, in sorted order.

    Raises:
        UserError: there is nothing at the path, or no image in it.
    """
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; expected an image or a folder of images")
    if not path.is_dir():
        return [path]
    suffixes = Image.registered_extensions()
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.name[0] != "." and p.is_file())
    if not found:
        raise UserError(f"{path}: no images in it; expected files such as .jpg or .png")
    return found
