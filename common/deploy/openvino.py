"""OpenVINO, the engine of ``--fast``: ONNX models, and its own files (IR), as functions from images to logits."""

from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.deploy.description import Description
from common.deploy.extras import need
from common.errors import UserError
from common.flags import shown
from common.reading import reason

# Left alone, it computes in bfloat16 where the processor can, and the codes are no longer the network's.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


@cache
def core() -> Any:
    """One for the process: it runs signal handlers on a stack of its own, and takes the stack with it when it goes.

    After that the next signal with a handler, a Ctrl-C or the end of a worker process, would be a segmentation fault.
    """
    return need("openvino").Core()


def read_model(model: bytes, weights: bytes | None = None) -> Any:
    """The openvino.Model of an ONNX file, or of an IR (the text of its .xml, and its .bin).

    Raises:
        UserError: openvino is not installed, or cannot read it.
    """
    try:
        return core().read_model(BytesIO(model), BytesIO(weights) if weights is not None else None)
    except Exception as error:  # its errors share no narrower base
        raise UserError(f"OpenVINO cannot read the model ({reason(error)})") from None


def described(path: Path, model: bytes, weights: bytes | None = None) -> tuple["OpenVinoLogits", Description]:
    """A file's bytes, as ``read_model`` takes them, as a classifier; its metadata have the description.

    Raises:
        UserError: openvino is not installed, or it is no model of this program.
    """
    found = read_model(model, weights)
    try:
        description = Description.from_json(str(found.get_rt_info(["framework", "network"]).value))
        (images,) = found.inputs
        sides = tuple(size.get_length() for size in list(images.get_partial_shape())[1:])
        if sides != description.image_shape:
            raise ValueError(f"its images are {shown(sides)}, its description says {description.image_shape}")
    except Exception as error:
        raise UserError(f"{path}: not a file of this program ({reason(error)})") from None
    return OpenVinoLogits(found), description


class OpenVinoLogits:
    """(B, C, H, W) images to class logits on the CPU; compiled anew for every size of a batch, in under a second.

    Args:
        model: of ``read_model``. threads: 0 takes as many as torch has.
        options: of the engine, instead of ``EXACT``.
    """

    def __init__(self, model: Any, threads: int = 0, options: Mapping[str, str] = EXACT) -> None:
        self.model = model
        self.options = {**options, "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
        self.openvino = need("openvino")
        self.requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if shape not in self.requests:
            self.requests[shape] = self._compiled(shape).create_infer_request()
        request = self.requests[shape]  # called itself, a compiled model takes a third of a millisecond longer
        values = images.contiguous().cpu().numpy()  # read while it infers, and kept by nobody else
        request.set_input_tensor(self.openvino.Tensor(values, shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        sized = self.model.clone()
        try:
            sized.reshape({sized.input(0): list(shape)})
            return core().compile_model(sized, "CPU", self.options)
        except Exception as error:
            raise UserError(f"OpenVINO cannot run the model on images of {shape} ({reason(error)})") from None
