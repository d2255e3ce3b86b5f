"""Types that the parameters of several tools have: what may be typed, and what is refused."""

from typing import Annotated, Literal

import torch

from common.errors import UserError
from common.flags import number
from common.quantizers import METHODS

OURS = METHODS["ours"].weight_bits
OursBits = Annotated[int, number(int, min(OURS), max(OURS), "bits")]
Bits = Annotated[int, number(int, 1, 32, "bits")]
Batch = Annotated[int, number(int, 2, 10**5, "a whole number of images")]
Side = Annotated[int, number(int, 8, 10**4, "a whole number of pixels")]
Prior = Annotated[float, number(float, 0, 1e9, "a number of images")]
Device = Literal["auto", "cpu", "cuda"]


def chosen_device(device: str) -> str:
    """cpu or cuda.

    Raises:
        UserError: torch sees no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; leave --device out, or type --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
