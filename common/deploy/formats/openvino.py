"""OpenVINO's own files (IR) of the integer graph: FILE.xml, and FILE.bin with the weights beside it."""

import os
import tempfile
from pathlib import Path

from torch import nn

from common.deploy.checksum import NAME, UNKNOWN, check, sealed
from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.formats.base import Format, Logits
from common.deploy.onnx.export import onnx_model
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.openvino import described, read_model
from common.errors import UserError
from common.reading import read_bytes
from common.writing import write_whole

WEIGHTS = ".bin"


def write(network: nn.Module, description: Description, path: Path) -> None:
    """
    Raises:
        UserError: openvino is not installed, or beside ``path`` lies a .bin that none of this program's files needs.
    """
    openvino = need("openvino")
    _refuse_foreign(path)
    metadata = {"network": description.to_json(), NAME: UNKNOWN}
    model = read_model(onnx_model(network, description.image_shape, metadata, IntegerWriter).SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / path.name
        openvino.save_model(model, place, compress_to_fp16=False)
        graph, weights = place.read_bytes(), place.with_suffix(WEIGHTS).read_bytes()
    write_whole(path.with_suffix(WEIGHTS), weights)
    write_whole(path, sealed(graph, _entry, weights))


def _refuse_foreign(path: Path) -> None:
    weights = path.with_suffix(WEIGHTS)
    if not os.path.lexists(weights):
        return
    try:
        _contents(path)
    except UserError:
        raise UserError(
            f"{weights}: would be overwritten, and is no file of this program; move it, or name another .xml"
        ) from None


def _contents(path: Path) -> tuple[bytes, bytes]:
    """The graph and the weights, as they were written."""
    graph = read_bytes(path, "an OpenVINO file")
    weights = read_bytes(path.with_suffix(WEIGHTS), "the weights that belong beside the .xml")
    check(path, "an OpenVINO file", graph, _entry, weights)
    return graph, weights


def read(path: Path, network: str | None = None) -> tuple[Logits, Description]:
    need("openvino")
    return described(path, *_contents(path))


def _entry(digest: str) -> bytes:
    return f'<{NAME} value="{digest}" />'.encode()


OPENVINO = Format(
    "openvino",
    ".xml",
    "the integer graph as OpenVINO's files",
    write,
    read,
    read_fast=read,
    engine="OpenVINO",
    beside=WEIGHTS,
)
