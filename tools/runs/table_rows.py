"""The rows of the README's tables by what the README calls them."""

import re
from collections.abc import Sequence
from dataclasses import replace

from common.config import recipes
from common.errors import UserError
from common.quantizers.rounding import FLOAT_BITS

LABELS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "densenet40": "DenseNet-40",
    "mnist": "MNIST",
    "mnistm": "MNISTM",
    "svhn": "SVHN",
    "syndigit": "SynDigits",
    "amazon": "A",
    "dslr": "D",
    "webcam": "W",
}


def label(row: recipes.Row) -> str:
    """What the README's table calls it: ResNet-20, MNIST->MNISTM, A->W."""
    return "->".join(LABELS[domain] for domain in row.pair) if row.pair else LABELS[row.task]


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())


def _called(row: recipes.Row, name: str) -> bool:
    names = {label(row), row.task if row.pair is None else "-".join(row.pair)}
    return _key(name) in {_key(one) for one in names}


def select(tasks: Sequence[str], names: Sequence[str], widths: Sequence[int]) -> list[recipes.Row]:
    """The tables' rows by what the README calls them and by bits (empty: all); 32 bits: the widest row's, in float.

    Raises:
        UserError: no chosen table has such a row, or none such a width.
    """
    rows = [row for task in tasks for row in recipes.TABLES[task]]
    for name in names:
        if not any(_called(row, name) for row in rows):
            known = ", ".join(dict.fromkeys(label(row).replace("->", "-") for row in rows))
            raise UserError(f"--rows {name}: expected some of {known}")
    rows = [row for row in rows if not names or any(_called(row, name) for name in names)]
    for bits in widths:
        if bits != FLOAT_BITS and not any(row.bits == bits for row in rows):
            known = ", ".join(map(str, sorted({row.bits for row in rows}, reverse=True)))
            raise UserError(f"--bits {bits}: expected some of 32, {known}")
    floats = [recipes.find_row(row.task, FLOAT_BITS, row.pair) for row in rows] if FLOAT_BITS in widths else []
    of_float = [replace(row, bits=FLOAT_BITS) for row in floats if row is not None]
    chosen = of_float + [row for row in rows if not widths or row.bits in widths]
    return [row for i, row in enumerate(chosen) if row not in chosen[:i]]
