"""Alignment files: what re-alignment (common.adaptation.realign) changed in a network, to put beside its file.

A .safetensors file with (2, C) float32, mean and variance, for each layer that was re-aligned, under its name. The
metadata are those of a packed file (common.deploy.packed.file); in the place of the network stands, as JSON, a digest
of all else that the network computes with, and how many images of what source it is from.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.adaptation.realign import Statistics, set_statistics
from common.deploy.packed.file import ALIGNMENT_FORMAT, read_tensors, write_tensors
from common.deploy.packed.tensors import tensors_of
from common.errors import UserError
from common.flags import LONGEST_PATH, shown
from common.measure.statistics import norms
from common.reading import is_whole, ordinary, parse_json

SUFFIX = ".alignment.safetensors"
MOST_BYTES = 64 * 2**20
MOST_PRIOR = 1e9


@dataclass(frozen=True)
class Alignment:
    """
    Attributes:
        statistics: (2, C) float32, mean and variance, by layer. base: ``base_digest`` of the network they belong to.
        images, source: how many images of what, as it was typed. prior: as of ``realign``.
    """

    statistics: Statistics
    base: str
    images: int
    source: str
    prior: float

    def line(self) -> str:
        return f"{self.images} image{'s' * (self.images != 1)} of {self.source}, prior {self.prior:g}"

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all.

        Raises:
            UserError: safetensors is not installed.
            OSError: the file cannot be written.
        """
        about = {"base": self.base, "images": self.images, "source": self.source, "prior": self.prior}
        statistics = {name: values.contiguous() for name, values in self.statistics.items()}
        write_tensors(statistics, ALIGNMENT_FORMAT, json.dumps(about), path)

    def apply(self, network: nn.Module, path: Path) -> None:
        """Give a network the statistics.

        Args:
            path: of this alignment, for the message.
        Raises:
            UserError: it belongs to another network, which is then left as it was.
        """
        self.refuse_other(base_digest(network), path)
        layers: dict[str, Any] = norms(network)
        for name, values in self.statistics.items():
            if name not in layers or layers[name].running_mean.numel() != values.shape[1]:
                raise UserError(f"{path}: {_other(f'a layer {shown(name)} of {values.shape[1]} channels')}")
        for name, values in self.statistics.items():
            set_statistics(layers[name], values)

    def refuse_other(self, base: str, path: Path) -> None:
        """
        Args:
            base: the ``base_digest`` of the network that it is to be applied to.
        Raises:
            UserError: it belongs to another network.
        """
        if base != self.base:
            raise UserError(f"{path}: {_other(f'{self.base[:12]}, this one {base[:12]}')}")


def _other(what: str) -> str:
    return f"of another network than this one (its codes are {what}); make one for this file with tools/realign.py"


def load(path: Path) -> Alignment:
    """Read a file.

    Raises:
        UserError: it is not there, damaged, of another format, too large, or holds what statistics cannot be.
    """
    ordinary(path, "an alignment file", MOST_BYTES)
    text, tensors = read_tensors(path, ALIGNMENT_FORMAT)
    try:
        about = parse_json(text)
        base, images, source, prior = _values(about)
        if not tensors:
            raise ValueError("it holds no statistics")
        for name, values in tensors.items():
            _check(name, values)
    except ValueError as error:
        raise UserError(f"{path}: no alignment file of this program ({error}); make it again") from None
    return Alignment(tensors, base, images, source, prior)


def _values(about: dict[str, Any]) -> tuple[str, int, str, float]:
    base, images, source, prior = (about.get(name) for name in ("base", "images", "source", "prior"))
    if not (isinstance(base, str) and re.fullmatch("[0-9a-f]{64}", base)):
        raise ValueError(f"its base is {shown(base)}")
    if not (isinstance(images, int) and is_whole(images, 1)):
        raise ValueError(f"its number of images is {shown(images)}")
    if not (isinstance(source, str) and len(source) <= LONGEST_PATH and source.isprintable()):
        raise ValueError(f"its source is {shown(source)}")
    if not (isinstance(prior, int | float) and 0 <= prior <= MOST_PRIOR):
        raise ValueError(f"its prior is {shown(prior)}")
    return base, images, source, float(prior)


def _check(name: str, values: Tensor) -> None:
    if values.dtype != torch.float32 or values.ndim != 2 or len(values) != 2 or not values.shape[1]:
        raise ValueError(f"{shown(name)} is {values.dtype} {tuple(values.shape)}, expected (2, C) float32")
    if not (bool(values.isfinite().all()) and bool((values[1] >= 0).all())):
        raise ValueError(f"{shown(name)} holds what no mean or variance can be")


def base_digest(network: nn.Module) -> str:
    """SHA-256 of all that a network computes with, its statistics apart: the same for a checkpoint and its packed file.

    Raises:
        UserError: as ``tensors_of``.
    """
    layers = norms(network)
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(network).items()):
        if name == "activation_moments" or name.rpartition(".")[0] in layers:
            continue  # statistics, also of a BatchNorm without weights of its own
        kept = tensor[:2] if name in layers else tensor  # weight and bias of a BatchNorm
        digest.update(name.encode())
        digest.update(kept.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
