"""A network in the engines and forms of numbers that a user could pick: images to logits, to be timed side by side."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.openvino import EXACT, OpenVinoLogits, read_model

Run = Callable[[Tensor], Any]


def float_runs(network: nn.Module, images: Tensor, threads: int) -> dict[str, Run]:
    """A float network in float32, bfloat16 and, where NNCF is installed, quantized after training to int8."""
    model = onnx_model(network, shape_of(images), {}).SerializeToString()
    runs: dict[str, Run] = {
        "float32 OpenVINO": OpenVinoLogits(read_model(model), threads),
        "float32 onnxruntime": _onnxruntime(model, threads),
        "bf16 OpenVINO": OpenVinoLogits(read_model(model), threads, {"INFERENCE_PRECISION_HINT": "bf16"}),
    }
    for name, make in (("int8 OpenVINO (NNCF)", _nncf), ("int8 onnxruntime", _onnxruntime_int8)):
        try:
            runs[name] = make(model, images, threads)
        except ImportError as error:
            print(f"no {name}: {error}")
    return runs


def integer_run(network: nn.Module, images: Tensor, threads: int) -> Run:
    """The integer graph of a quantized network in OpenVINO."""
    model = onnx_model(network, shape_of(images), {}, IntegerWriter).SerializeToString()
    return OpenVinoLogits(read_model(model), threads, EXACT)


def shape_of(images: Tensor) -> tuple[int, int, int]:
    _, channels, rows, columns = images.shape
    return channels, rows, columns


def _onnxruntime(model: bytes, threads: int) -> Run:
    session = open_session(model, threads, in_bytes=True)
    return lambda images: session.run(None, {"images": images.numpy()})


def _nncf(model: bytes, images: Tensor, threads: int) -> Run:
    """Quantized on the images themselves, which is enough to be timed."""
    import nncf

    calibration = nncf.Dataset([images[:1].numpy()])
    return OpenVinoLogits(nncf.quantize(read_model(model), calibration, subset_size=1), threads)


def _onnxruntime_int8(model: bytes, images: Tensor, threads: int) -> Run:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"images": np.ascontiguousarray(images[:1].numpy())}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.onnx") for name in ("float", "folded", "int8")]
        Path(paths[0]).write_bytes(model)
        quant_pre_process(paths[0], paths[1])
        quantization.quantize_static(
            *paths[1:],
            Images(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return _onnxruntime(Path(paths[2]).read_bytes(), threads)
