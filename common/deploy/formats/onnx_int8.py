"""ONNX files whose convolutions multiply bytes (common.deploy.onnx.integer): any engine with QDQ runs them."""

from pathlib import Path

from torch import nn

from common.deploy.description import Description
from common.deploy.formats import onnx
from common.deploy.formats.base import Format
from common.deploy.onnx.integer import IntegerWriter


def write(network: nn.Module, description: Description, path: Path) -> None:
    onnx.write(network, description, path, IntegerWriter)


ONNX_INT8 = Format(
    "onnx-int8",
    onnx.ONNX.suffix,
    "the integer graph in opset 21, for OpenVINO and other engines",
    write,
    onnx.read,
    engine="onnxruntime",
)
