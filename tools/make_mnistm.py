"""MNIST-M made from MNIST and a folder of photographs, by the recipe of Ganin et al. (JMLR 2016, section 5.2.4).

    python tools/make_mnistm.py --photos BSDS500/data/images/train

A digit is blended over a random 28 x 28 crop of a random photograph: |patch - digit| in each channel. The published
copies took the photographs of BSDS500 and other random numbers; the images are theirs in kind, not to the bit.
"""

import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data import digits
from common.data.images import ImageSet
from common.data.locate import data_folder
from common.data.seeding import generator
from common.errors import UserError
from common.reading import reason
from common.runs.annotations import NewFolder, Seed
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.deployed.images import images_at

SIDE = 28


def make_mnistm(
    *,
    photos: Path,
    data_dir: str | None = None,
    out: NewFolder = Path("data/mnistm"),
    seed: Seed = 0,
    download: bool = True,
) -> None:
    """Write OUT/mnist_m_train.pt and OUT/mnist_m_test.pt, which the digits tasks read from a data_dir around OUT.

    Args:
        photos: folder of colour photographs, such as the 200 for training of BSDS500; every image below it is used.
        data_dir: folder of MNIST (default: ./data, then the repository's data/).
        out: folder of the two files; earlier ones are replaced.
        seed: of photographs and crops.
        download: fetch MNIST where it is missing.
    """
    sides = digits.load("mnist", data_folder(data_dir, "mnist"), SIDE, download)
    if any("demo" in side.name for side in sides):
        raise UserError("--data_dir: this is the demo's MNIST, which has an MNIST-M of its own; expected the real one")
    photographs = [photograph(path) for path in images_at(photos)]
    out.mkdir(parents=True, exist_ok=True)
    for name, side in zip(("train", "test"), sides, strict=True):
        buffer = io.BytesIO()
        torch.save((blended(side, photographs, generator(seed, "mnistm", name)), side.labels), buffer)
        write_whole(out / f"mnist_m_{name}.pt", buffer.getbuffer())
    counts = " + ".join(str(len(side)) for side in sides)
    print(f"{out}: {counts} images for training and test, from {len(photographs)} photographs, seed {seed}")


def photograph(path: Path) -> Tensor:
    """(H, W, 3) uint8.

    Raises:
        UserError: it cannot be read, or is smaller than a digit.
    """
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except Exception as error:  # a damaged image fails in whatever way its bytes say
        raise UserError(f"{path}: cannot be read as an image ({reason(error)})") from None
    if min(pixels.shape[:2]) < SIDE:
        height, width = pixels.shape[:2]
        raise UserError(f"{path}: {width} x {height} pixels; expected at least {SIDE} x {SIDE}")
    return pixels


def blended(of: ImageSet, photographs: list[Tensor], random: torch.Generator) -> Tensor:
    """(N, 28, 28, 3) uint8: every digit over a crop of its own."""
    count = len(of)
    chosen = torch.randint(len(photographs), (count,), generator=random)
    at = torch.rand((2, count), generator=random, dtype=torch.float64)
    along = torch.arange(SIDE)
    patches = torch.empty((count, SIDE, SIDE, 3), dtype=torch.uint8)
    for index, pixels in enumerate(photographs):
        own = (chosen == index).nonzero().flatten()
        top, left = ((at[axis, own] * (pixels.shape[axis] - SIDE + 1)).long() for axis in (0, 1))
        rows, columns = top[:, None, None] + along[:, None], left[:, None, None] + along
        patches[own] = pixels[rows, columns]
    return (patches.short() - of.images.permute(0, 2, 3, 1).short()).abs_().to(torch.uint8)


if __name__ == "__main__":
    run_tool(make_mnistm)
