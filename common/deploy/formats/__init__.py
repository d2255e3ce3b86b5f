"""The formats that networks are shipped in. A new one is one file and one line here."""

from common.deploy.formats.base import Format
from common.deploy.formats.onnx import ONNX
from common.deploy.formats.onnx_int8 import ONNX_INT8
from common.deploy.formats.openvino import OPENVINO
from common.deploy.formats.packed import PACKED
from common.deploy.formats.pt2 import PT2
from common.deploy.formats.qonnx import QONNX

FORMATS: dict[str, Format] = {one.name: one for one in (PACKED, ONNX, ONNX_INT8, OPENVINO, QONNX, PT2)}

__all__ = ["FORMATS", "Format"]
