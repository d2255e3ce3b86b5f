"""Running sums that stay on the device until they are read, and the progress bar."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import UserError
from common.machine import distributed


class Sums:
    """Sums of named per-batch values, weighted by batch size; reading them is the only host synchronisation.

    ``latest`` and ``mean`` give floats by name; ``mean`` is over the samples of all processes, which ask together.
    """

    def __init__(self) -> None:
        self._last: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, count: int, **values: Tensor) -> None:
        """Means over ``count`` samples, as 0-dimensional tensors."""
        for name, value in values.items():
            value = value.detach()
            self._last[name] = value
            self._sums[name] = self._sums.get(name, 0) + value * count
            self._counts[name] = self._counts.get(name, 0) + count

    def latest(self) -> dict[str, float]:
        return {name: float(value) for name, value in self._last.items()}

    def mean(self) -> dict[str, float]:
        own = {name: (float(value), self._counts[name]) for name, value in self._sums.items()}
        totals: dict[str, tuple[float, int]] = {}
        for sums in distributed.gather(own):
            for name, (value, count) in sums.items():
                before, counted = totals.get(name, (0.0, 0))
                totals[name] = before + value, counted + count
        return {name: value / count for name, (value, count) in totals.items()}


def precision(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy in per cent, {"prec1": …, "prec5": …}; with fewer than five classes prec5 counts all."""
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return {"prec1": hits[:, 0].float().mean() * 100, "prec5": hits.any(1).float().mean() * 100}


class Pace:
    """Of an epoch, from here on: how fast it goes, and how much of the time it waits for data."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._waited, self._images = 0.0, 0

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of images and labels as they come; the time until each is there counts as waiting."""
        remaining = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(remaining, None)
            self._waited += time.perf_counter() - begin
            if batch is None:
                return
            self._images += len(batch[0])
            yield batch

    def __str__(self) -> str:
        """For the log, once the device has finished; images of all processes."""
        seconds = time.perf_counter() - self._begin
        speed, waiting = self._images * distributed.size() / seconds, 100 * self._waited / seconds
        return f"{speed:.0f} images/s, {waiting:.1f} % of the time waiting for data"


class FiniteWatch:
    """Remembers on the device the first step whose loss was not finite, and stops the run when it is asked."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1, dtype=torch.int64, device=device)

    def see(self, loss: Tensor, step: int) -> None:
        bad = ~torch.isfinite(loss.detach()) & (self._first < 0)
        self._first = torch.where(bad, step, self._first)

    def check(self, epoch: int, last_good: str) -> None:
        """Raises UserError with epoch, step and last good checkpoint if a loss of any process was NaN or infinite."""
        steps = [step for step in distributed.gather(int(self._first)) if step >= 0]
        if steps:
            raise UserError(
                f"the loss became NaN or infinite at epoch {epoch}, step {min(steps)}; {last_good}; try a lower --lr"
            )


def progress_bar(batches: Any, label: str, steps: int) -> Any:
    """A progress bar on a terminal, the bare iterable otherwise."""
    return tqdm(
        batches, label, steps, leave=False, disable=not sys.stderr.isatty() or distributed.rank() > 0, file=sys.stderr
    )
