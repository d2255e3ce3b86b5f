"""How much disk a plan's checkpoints take, from the sizes of the networks, and how a finished run is made smaller."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from common.config.options import Options
from common.errors import UserError
from common.runs.checkpoint import keep_weights_alone
from common.runs.start import make_network
from tools.runs.plan import Planned

FULL_FILES = 3  # of a run in progress: last.pt, model_best.pt and the one being written


def network_bytes(options: Options) -> tuple[int, int]:
    """(weights and buffers, optimizer's momentum) of a run with these options, in bytes; no memory is taken for them.

    Raises:
        UserError: no network has these options.
    """
    with torch.device("meta"):
        network = make_network(options)
    momentum = sum(p.nbytes for p in network.parameters()) if options.training.momentum else 0
    return sum(t.nbytes for t in network.state_dict().values()), momentum


def needed(left: Mapping[Planned, Options], workers: int) -> tuple[int, int]:
    """(bytes kept in the end, most bytes taken at any time) by the checkpoints of the runs that are left.

    A finished run keeps its best weights, and with --reestimate the last epoch's too; one in progress has FULL_FILES
    files with the optimizer's momentum.

    Args:
        left: by run, its options.
    """
    sizes = [network_bytes(options) for options in left.values()]
    again = [options.training.reestimate > 0 for options in left.values()]
    kept = sum(weights * (1 + twice) for (weights, _), twice in zip(sizes, again, strict=True))
    extra = sorted((FULL_FILES * (weights + momentum) - weights for weights, momentum in sizes), reverse=True)
    return kept, kept + sum(extra[:workers])


def statement(folder: Path, kept: int, most: int, count: int) -> str:
    """What a plan takes beside what is free where ``folder`` is or will be."""
    return (
        f"disk: {count} runs keep {size(kept)}, take at most {size(most)} while running; {size(free(folder))} are free"
    )


def check_free(folder: Path, most: int) -> None:
    """Raises: UserError: fewer than ``most`` bytes are free."""
    if free(folder) < most:
        text = f"{size(most)} are needed and {size(free(folder))} are free"
        raise UserError(f"--out {folder}: {text}; choose fewer rows, fewer --workers or another --out")


def trim(best: Path) -> None:
    """Of a finished run, drop what only a resume needs: last.pt and, in model_best.pt, the optimizer's state."""
    if (last := best.with_name("last.pt")).exists():
        keep_weights_alone(best)
        last.unlink()


def free(folder: Path) -> int:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
