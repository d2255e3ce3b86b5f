"""QONNX files (common.deploy.onnx.multithreshold): what FINN and hls4ml build circuits from."""

from pathlib import Path
from typing import Any

from torch import nn

from common.deploy.description import Description
from common.deploy.formats.base import Format
from common.deploy.onnx.export import onnx_model
from common.deploy.onnx.multithreshold import MultiThresholdWriter
from common.writing import write_whole


def qonnx_model(network: nn.Module, description: Description) -> Any:
    """The ModelProto, of batches of one image, as the tools that read it want them."""
    metadata = {"network": description.to_json()}
    model = onnx_model(network, description.image_shape, metadata, MultiThresholdWriter)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    used = {name for node in model.graph.node for name in node.input}
    for constant in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(constant)
    return model


def write(network: nn.Module, description: Description, path: Path) -> None:
    write_whole(path, qonnx_model(network, description).SerializeToString())


QONNX = Format(
    "qonnx",
    ".qonnx",
    "integer products and MultiThreshold, for FINN, hls4ml and the tools of qonnx",
    write,
    why_not="a QONNX file, which is for the tools of qonnx, FINN and hls4ml, so it is not opened here",
)
