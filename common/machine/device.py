"""Where to compute, and the random states."""

import random
from dataclasses import dataclass

import numpy as np
import torch

from common.errors import UserError
from common.flags import flag, number, switch
from common.machine import distributed


@dataclass(frozen=True)
class DeviceOptions:
    device: str = flag("auto", help="where to compute", choices=("auto", "cpu", "cuda"))
    gpus: list[int] | None = flag(None, number(int, 0, 1023), "CUDA device; the first is used (default: 0)", nargs="+")
    sync_bn: bool = switch(False, "under torchrun: BatchNorm over the samples of all processes; needs CUDA")


def seed_everything(seed: int) -> None:
    """Seed torch, NumPy and Python; sample order and augmentation have generators of their own."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- libraries that use the global generator
    random.seed(seed)


def random_state() -> dict[str, torch.Tensor]:
    """torch's generators as tensors, so that ``weights_only`` reads them."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Undo: continue the generators from ``random_state``."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def choose_device(options: DeviceOptions) -> tuple[torch.device, str | None]:
    """The device of --device and --gpus, one for each process under torchrun, and a line for the log, or None.

    Raises:
        UserError: --device cuda without CUDA, or a device number or a process more than this machine has devices.
    """
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise UserError("--device cuda: this torch sees no CUDA device; use --device cpu or auto")
    if options.device == "cpu" or not available:
        asked = options.gpus is not None and options.device == "auto"
        return torch.device("cpu"), "no CUDA device: --gpus has no effect, computing on the CPU" if asked else None
    number = torch.cuda.device_count()
    if (own := distributed.local_rank()) is not None:
        if own >= number:
            raise UserError(
                f"process {own} of this machine has no CUDA device: there are {number}; "
                f"--nproc_per_node {number}, or --device cpu"
            )
        torch.cuda.set_device(own)
        ignored = options.gpus is not None
        return torch.device(
            "cuda", own
        ), "several processes: --gpus has no effect, CUDA_VISIBLE_DEVICES does" if ignored else None
    index = options.gpus[0] if options.gpus else 0
    if index >= number:
        raise UserError(f"--gpus {index}: this machine has {number} CUDA device(s), numbered from 0")
    return torch.device("cuda", index), None
