"""ONNX: the trained network with k-bit weights in the file, for onnxruntime and anything else that reads opset 21.

Weights are stored as codes, UINT4 up to 4 bits and UINT8 above, followed by what turns them into floats
(common.deploy.onnx.quantizers). The output of every activation quantizer carries the quantizer's name.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.deploy.checksum import NAME, UNKNOWN, check, sealed
from common.deploy.extras import need
from common.deploy.graph import ClassLogits, refuse_unset
from common.deploy.onnx.recording import PREFIX
from common.deploy.onnx.writer import NetworkWriter
from common.errors import UserError
from common.reading import read_bytes, reason
from common.writing import write_whole

OPSET = 21  # the first with 4-bit integers in DequantizeLinear
IR_VERSION = 10  # that opset's


def export_onnx(
    network: nn.Module,
    path: Path | str,
    image_shape: tuple[int, int, int],
    metadata: Mapping[str, str] | None = None,
    form: type[NetworkWriter] = NetworkWriter,
) -> None:
    """Write a network of any method, or a float one, as ``path``: input "images" (batch, C, H, W), output "logits".

    Args:
        image_shape: (C, H, W) of one image; the batch is dynamic.
        metadata: stored in the file, beside a checksum of all of it.
        form: what writes the nodes; ``IntegerWriter`` writes convolutions of bytes.
    Raises:
        UserError: onnx is not installed, learned scales were never set, or the network computes what this
            export does not know.
    """
    content = onnx_model(network, image_shape, {**(metadata or {}), NAME: UNKNOWN}, form).SerializeToString()
    write_whole(Path(path), sealed(content, _entry))


def read_onnx(path: Path | str) -> bytes:
    """The bytes of a file that ``export_onnx`` wrote, every one of which is as it was written.

    Raises:
        UserError: no such file, another one, or one that was damaged or changed since.
    """
    content = read_bytes(Path(path), "an ONNX file")
    check(Path(path), "an ONNX file", content, _entry)
    return content


def _entry(digest: str) -> bytes:
    """The checksum as it stands in a file: the fields 1 and 2 of an entry of the metadata, by protobuf's rules."""
    return b"\n%c%s\x12%c%s" % (len(NAME), NAME.encode(), len(digest), digest.encode())


def onnx_model(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    metadata: Mapping[str, str],
    form: type[NetworkWriter] = NetworkWriter,
) -> Any:
    """The checked ModelProto of ``export_onnx``."""
    onnx = need("onnx")
    source = ClassLogits(copy.deepcopy(network).cpu()).eval().requires_grad_(False)
    refuse_unset((name.removeprefix(PREFIX), module) for name, module in source.named_modules())
    writer = form(source, image_shape)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        writer.nodes,
        "alignq",
        [helper.make_tensor_value_info("images", kind, ["batch", *image_shape])],
        [helper.make_tensor_value_info("logits", kind, ["batch", None])],
        writer.constants,
    )
    graph.quantization_annotation.extend(writer.annotations)
    opsets = [helper.make_opsetid(domain, 1) for domain in {node.domain for node in writer.nodes} - {""}]
    opsets = [helper.make_opsetid("", OPSET), *opsets]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="alignq")
    helper.set_model_props(model, dict(metadata))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # a defect of this export; the checker's errors share no narrower base
        raise UserError(f"the network has no form in ONNX here ({reason(error)})") from error
    return model


def open_session(model: bytes | str, threads: int = 0, in_bytes: bool = False) -> Any:
    """An onnxruntime session on the CPU that turns the codes into floats once, at loading, and not in every run.

    Args:
        model: the bytes of a file, or its path. threads: 0 leaves the number to onnxruntime.
        in_bytes: let it multiply bytes instead, wherever it can.
    """
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.disable_quant_qdq", "0" if in_bytes else "1")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
