"""How the processes of one run share its training batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Which part of every batch belongs to a process: ``rank`` of ``size``, equal parts in order; alone: all of it.

    The batches themselves are the same for any number of processes. Where a last batch cannot be shared evenly, its
    last samples, at most size - 1, are left out, so that the mean of the processes' means is the mean over all.
    """

    rank: int = 0
    size: int = 1

    def of(self, start: int, stop: int) -> slice:
        """Positions of this process in the batch start .. stop."""
        count = (stop - start) // self.size
        return slice(start + self.rank * count, start + (self.rank + 1) * count)


def batch_count(samples: int, batch_size: int, drop_last: bool, share: Share) -> int:
    """How many batches; a last one that is not full counts, unless ``drop_last`` or a process would have none of it."""
    full, rest = divmod(samples, batch_size)
    return full + (not drop_last and rest >= share.size)
