"""ONNX files with k-bit codes (common.deploy.onnx), run by onnxruntime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.deploy.alignment import Alignment, base_digest
from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.formats.base import Format, Logits
from common.deploy.onnx.export import export_onnx, open_session, read_onnx
from common.deploy.onnx.statistics import set_statistics
from common.deploy.onnx.writer import NetworkWriter
from common.deploy.openvino import described
from common.errors import UserError
from common.flags import shown
from common.reading import reason

BASE = "base"  # of the metadata: what an alignment file must name


def write(network: nn.Module, description: Description, path: Path, form: type[NetworkWriter] = NetworkWriter) -> None:
    metadata = {"network": description.to_json(), BASE: base_digest(network)}
    export_onnx(network, path, description.image_shape, metadata, form)


def read(path: Path, network: str | None = None) -> tuple[Logits, Description]:
    """Its first output are class logits; its metadata have the description under "network"."""
    need("onnxruntime")
    return _open(path, read_onnx(path))


def read_aligned(path: Path, alignment: Alignment, its_path: Path) -> tuple[Logits, Description]:
    """As ``read``, with the statistics of an alignment.

    Raises:
        UserError: also if it belongs to another network, or the network has statistics beside its BatchNorms'.
    """
    model = need("onnx").load_from_string(read_onnx(path))
    base = next((entry.value for entry in model.metadata_props if entry.key == BASE), "")
    alignment.refuse_other(base, its_path)
    try:
        set_statistics(model, alignment.statistics)
    except ValueError as error:
        raise UserError(f"{path}: {error}; export its checkpoint with --alignment {its_path}") from None
    return _open(path, model.SerializeToString())


def _open(path: Path, content: bytes) -> tuple[Logits, Description]:
    need("onnxruntime")
    try:
        session = open_session(content)
        description = Description.from_json(session.get_modelmeta().custom_metadata_map["network"])
        (images,), (_, channels, *sides) = session.get_inputs(), session.get_inputs()[0].shape
        if (channels, *sides) != description.image_shape:
            raise ValueError(f"its images are {shown(sides)}, its description says {description.image_shape}")
    except Exception as error:  # onnxruntime's errors share no narrower base
        raise UserError(f"{path}: not an ONNX file of this program ({reason(error)})") from None
    name = images.name

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])

    return logits, description


def read_fast(path: Path, network: str | None = None) -> tuple[Logits, Description]:
    """The same by OpenVINO."""
    need("openvino")
    return described(path, read_onnx(path))


ONNX = Format("onnx", ".onnx", "opset 21, for onnxruntime", write, read, read_aligned, read_fast, engine="onnxruntime")
