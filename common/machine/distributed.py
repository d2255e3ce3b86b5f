"""Several processes as one run, started by torchrun: who is who, what they exchange, and how they end together.

A run without torchrun, or with one process, makes no process group, and everything here leaves it as it is.
"""

import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common.data.seeding import generator
from common.data.sharding import Share
from common.errors import UserError

T = TypeVar("T")
SILENCE = timedelta(minutes=10)  # without a word from the others, after which a process gives up
SYNC_BUFFERS = "forward_sync_buffers"  # of DDP
if SYNC_BUFFERS not in inspect.signature(DistributedDataParallel.__init__).parameters:
    SYNC_BUFFERS = "broadcast_buffers"  # its name before torch 2.13
FAULTS = ("gloo", "NCCL", "TCPStore", "Connection reset", "Connection closed")  # in the text of a torch error

_store: dist.Store | None = None  # torchrun's own, which outlives any process of the run


def start() -> None:
    """Join the other processes of torchrun. From the second on they write nothing: the first one speaks for all."""
    global _store
    if _joined() or not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return
    _store, own, count = next(dist.rendezvous("env://", timeout=SILENCE))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=_store, rank=own, world_size=count, timeout=SILENCE)
    if own > 0:
        logging.disable()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- for the life of the process


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _joined() else 0


def size() -> int:
    return dist.get_world_size() if _joined() else 1


def local_rank() -> int | None:
    """Which process of its machine this is; None alone."""
    return int(os.environ["LOCAL_RANK"]) if _joined() else None


def share() -> Share:
    """This process's part of every training batch."""
    return Share(rank(), size())


def check(batch: int, sync_bn: bool, device: torch.device) -> list[str]:
    """Refuse, before data are read, what several processes cannot do.

    Args:
        batch: --train_batch_size, of all processes together. sync_bn: BatchNorm over the samples of all.
    Returns:
        Lines for the log: what each process does.
    Raises:
        UserError: they cannot share --train_batch_size evenly, or --sync_bn on a CPU.
    """
    count = size()
    if sync_bn and device.type == "cpu":
        raise UserError("--sync_bn needs CUDA devices: torch has no synchronised BatchNorm for the CPU; leave it out")
    if batch % count:
        raise UserError(
            f"--train_batch_size {batch} cannot be shared by {count} processes; expected a multiple of {count}, "
            f"such as {max(batch // count, 1) * count}"
        )
    if count > 1:
        norm = "all" if sync_bn else "its own"
        return [f"{count} processes, {batch // count} samples of a batch each; BatchNorm over {norm} samples"]
    return ["--sync_bn has no effect in a single process"] if sync_bn else []


def gather(value: T) -> list[T]:
    """``value`` of every process, in order; a meeting point for all of them. Alone: [value]."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def dealt(batches: Iterable[T]) -> Iterator[T]:
    """This process's batches of an evaluation: whole ones in turn, so that each is computed as it would be alone."""
    return islice(batches, rank(), None, size())


class _Step(nn.Module):
    """A function that uses ``network`` as often as it likes, as one forward pass: what DDP can follow."""

    def __init__(self, network: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def replicate(network: nn.Module, function: Any = None, unused: bool = False) -> Any:
    """``function`` (default: the network's call), with gradients of ``network`` averaged over processes on their way.

    Running statistics stay each process's own until `average_statistics`. Alone: ``function`` itself.

    Args:
        network: on its device, with the same parameters and buffers in every process.
        function: calls the network, perhaps several times, and returns all that is differentiated.
        unused: whether parameters of the network may get no gradient.
    """
    if size() == 1:
        return network if function is None else function
    module = network if function is None else _Step(network, function)
    settings: dict[str, Any] = {SYNC_BUFFERS: False, "find_unused_parameters": unused}
    return DistributedDataParallel(module, **settings)


@torch.no_grad()
def average_statistics(network: nn.Module) -> None:
    """Give every process the mean of all processes' running means and variances (BatchNorm)."""
    running = [b for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if size() == 1 or not running:
        return
    means = torch.cat([buffer.flatten() for buffer in running])
    dist.all_reduce(means)
    for buffer, mean in zip(running, (means / size()).split([b.numel() for b in running]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def synchronise_batch_norm(modules: nn.ModuleList) -> None:
    """For --sync_bn: let every BatchNorm within them go over the samples of all processes, under the same names."""
    if size() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(modules)


def seed_epoch(seed: int, epoch: int) -> None:
    """Let dropout draw differently in every process; the first one goes on as it would alone."""
    if rank() > 0:
        torch.manual_seed(generator("process", seed, epoch, rank()).initial_seed())


def leave() -> bool:
    """End the exchange; true in the first process, which goes on alone."""
    first = rank() == 0
    if _joined():
        dist.destroy_process_group()
    return first


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether ``error`` is what torch raises when another process of the run has ended or is silent."""
    return _joined() and (isinstance(error, dist.DistError) or any(part in str(error) for part in FAULTS))


def end(say: Callable[[], object], status: int) -> None:
    """End in a fault, together: of all processes the first one to get here says why. Alone: only say it.

    torchrun sends SIGTERM to the others of a run as soon as one has ended, so signals are ignored from here on; and
    the clean-up of an exit would wait for processes that have gone, so there is none.
    """
    if not _joined():
        say()
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if _is_first_fault():
        say()
    os._exit(status)


def _is_first_fault() -> bool:
    try:
        return _store is None or _store.add("fault", 1) == 1
    except RuntimeError:  # torchrun itself is gone, and its store with it
        return True
