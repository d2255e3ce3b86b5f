"""Printed numerals from the DejaVu fonts that come with matplotlib, as pictures in the manner of SVHN and SynDigits."""

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from common.data.demo.sources import photograph_crop

SIZE = 32
_SCALE = 3  # numerals are drawn larger and shrunk
_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
_CONTRAST = 160  # the least sum of differences, over three channels, between a numeral and what it stands on


def house_number(rng: np.random.Generator, digit: int) -> np.ndarray:
    """A numeral on a plate between its neighbours, unevenly lit, blurred and noisy: (32, 32, 3) uint8, like SVHN."""
    font = _FONTS[rng.integers(len(_FONTS))]
    plate, paint = _two_colours(rng)
    height = rng.uniform(20, 28)
    centre = rng.uniform(14, 18, size=2)
    angle = rng.uniform(-8, 8)
    ink = _numeral(font, digit, height, centre, angle)
    for side in (-1, 1):
        if rng.random() < 0.5:
            beside = centre + np.array((side * height * rng.uniform(0.65, 0.8), rng.uniform(-1, 1)))
            ink = np.maximum(ink, _numeral(font, int(rng.integers(10)), height, beside, angle))
    picture = plate + ink[..., None] * (paint - plate)
    slope = rng.uniform(-40, 40, size=2)
    across = np.linspace(-0.5, 0.5, SIZE)
    picture += (slope[0] * across[None, :] + slope[1] * across[:, None])[..., None]
    blurred = Image.fromarray(_bytes(picture)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    return _bytes(np.asarray(blurred) + rng.normal(0, 6, size=(SIZE, SIZE, 3)))


def synthetic_digit(rng: np.random.Generator, digit: int, held_out: bool) -> np.ndarray:
    """A turned numeral in one colour on a faded photograph: (32, 32, 3) uint8, like SynDigits."""
    font = _FONTS[rng.integers(len(_FONTS))]
    ground, paint = _two_colours(rng)
    ink = _numeral(font, digit, rng.uniform(18, 28), rng.uniform(13, 19, size=2), rng.uniform(-25, 25))
    photograph = photograph_crop(rng, SIZE, held_out).astype(np.float64)
    background = ground + rng.uniform(0.2, 0.5) * (photograph - photograph.mean(axis=(0, 1)))
    return _bytes(background + ink[..., None] * (paint - background))


def _numeral(font: str, digit: int, height: float, centre: np.ndarray, angle: float) -> np.ndarray:
    """(32, 32) ink in [0, 1]: `digit`, `height` pixels high, about `centre` (across, down), turned `angle` degrees."""
    canvas = Image.new("L", (SIZE * _SCALE, SIZE * _SCALE))
    across, down = (centre * _SCALE).tolist()
    letters = _font(font, round(height * _SCALE / 0.73))  # a DejaVu numeral is 0.73 em high
    ImageDraw.Draw(canvas).text((across, down), str(digit), fill=255, font=letters, anchor="mm")
    canvas = canvas.rotate(angle, Image.Resampling.BILINEAR, center=(across, down))
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    while True:
        first, second = rng.uniform(0, 255, size=(2, 3))
        if np.abs(first - second).sum() >= _CONTRAST:
            return first, second


def _bytes(picture: np.ndarray) -> np.ndarray:
    return picture.round().clip(0, 255).astype(np.uint8)
