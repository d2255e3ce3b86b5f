"""matplotlib figures as SVG that stands inside an HTML page and takes the page's colours and fonts, light and dark."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from tools import pictures

INK, MUTED, LINE, SOFT = "#101112", "#444444", "#dddddd", "#9db8d9"  # the last three also stand in pictures.py
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", SOFT: "--soft"} | {
    colour: f"--c{index}" for index, colour in enumerate(pictures.COLOURS)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.alpha": 1.0,
}
_numbers = count()


@contextmanager
def style() -> Iterator[None]:
    """Within it, figures have the look that ``inline`` expects."""
    with matplotlib.rc_context(STYLE):
        yield


def inline(figure: Figure, title: str, tight: bool = True) -> Markup:
    """The figure as an <svg> element without a size of its own, ``title`` for who cannot see it.

    ``tight`` cuts its margins, which takes a second drawing. Ids are made unique in the page, and everything that
    points out of it (document type, metadata) is left out.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight" if tight else None, pad_inches=0.04)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    prefix = f"f{next(_numbers)}"
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    text = text.replace("xlink:href", "href")
    text = re.sub(r"(\bfont: (?:\w+ )*[\d.]+px)[^;\"]*", r"\1 var(--font)", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), text)
    text = re.sub(r'(?<= d=")[^"]*', lambda match: re.sub(r"(\.\d)\d+", r"\1", match[0]), text)  # tenths of a point do
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None, "matplotlib writes a view box"
    width = round(float(box[1].split()[2]) * 1.35)
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(title)}" style="max-width:{width}px">'
    body = re.sub(r"\s*\n\s*", " ", text[text.index(">") + 1 :])
    return Markup(opening + body)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour
