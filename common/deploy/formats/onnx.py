"""ONNX files with k-bit codes (common.deploy.onnx), run by onnxruntime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.deploy.description import Description
from common.deploy.extras import need
from common.deploy.formats.base import Format, Logits
from common.deploy.onnx.export import export_onnx, open_session, read_onnx
from common.deploy.openvino import described
from common.errors import UserError
from common.flags import shown
from common.reading import reason


def write(network: nn.Module, description: Description, path: Path) -> None:
    export_onnx(network, path, description.image_shape, {"network": description.to_json()})


def read(path: Path, network: str | None = None) -> tuple[Logits, Description]:
    """Its first output are class logits; its metadata have the description under "network"."""
    need("onnxruntime")
    content = read_onnx(path)
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


ONNX = Format("onnx", ".onnx", "opset 21, for onnxruntime", write, read, read_fast, engine="onnxruntime")
