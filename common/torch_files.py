"""Files of torch.save: read whole or refused in one line, and nothing in them is executed."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.reading import ordinary, reason

ZIP = b"PK\x03\x04"  # by which torch tells its archives from its older files


def read(path: Path, expected: str) -> Any:
    """What is in a file, on the CPU.

    The checksums of a zip archive, which torch writes and does not read, are compared first.

    Args:
        expected: for the message, such as "a checkpoint file such as model_best.pt".
    Raises:
        UserError: no such file, a damaged or foreign one, or one that holds more than tensors and plain values.
    """
    ordinary(path, expected)
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP)) == ZIP:
                _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kinds of tensors that will be refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in whatever way its bytes say
        foreign = isinstance(error, pickle.UnpicklingError)
        said = "it holds more than tensors and numbers" if foreign else reason(error)
        raise UserError(f"{path}: not a complete PyTorch checkpoint ({said}); fetch or train it again") from None


def _check_archive(path: Path) -> None:
    """Raises ValueError or zipfile's own where a member is compressed, as torch never does, or has another checksum."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("a compressed archive")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} in it does not fit: it is damaged")


def is_plain(value: object) -> bool:
    """Whether it is an ordinary tensor in memory, which has as many values as it says."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )
