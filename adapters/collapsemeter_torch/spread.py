"""Whether a loader spreads a data set over ranks, and which rows it repeats so that all have as many."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Spread:
    """Which rows of a data set a loader gives to one rank of several, in blocks that go round.

    ``ranks`` is 0 where it is not told. ``size`` is that of the data set, and ``batch`` how many samples a
    batch has; None where unknown.
    """

    rank: int
    ranks: int
    size: int | None
    batch: int | None
    block: int = 1

    def fresh(self, first: int, rows: int) -> int:
        """Return how many rows of a batch, the first being the rank's ``first``-th, repeat no other."""
        if self.size is None or self.batch is None or rows > self.batch:
            return rows  # what a batch holds is not one row a sample
        return sum(self._place(row) < self.size for row in range(first, first + rows))

    def _place(self, row: int) -> int:
        """Return the place of a row among those of all ranks."""
        block, within = divmod(row, self.block)
        return (block * self.ranks + self.rank) * self.block + within


def spread_of(loader: Any) -> Spread | None:
    """Return how a loader spreads its data, as its samplers say; None where none does."""
    batches = getattr(loader, "batch_sampler", None)
    batch = getattr(loader, "batch_size", None)
    for sampler in (getattr(loader, "sampler", None), getattr(batches, "sampler", None), batches):
        ranks, rank = getattr(sampler, "num_replicas", None), getattr(sampler, "rank", None)
        if isinstance(ranks, int) and isinstance(rank, int):  # DistributedSampler, and its like
            size = _length(getattr(sampler, "dataset", getattr(sampler, "lengths", None)))
            batch = getattr(batches, "batch_size", batch)
            return Spread(rank, ranks, size, batch) if ranks > 1 else None
    for sampler in (batches, getattr(loader, "dataset", None)):  # those of accelerate
        ranks, rank = (getattr(sampler, name, None) for name in ("num_processes", "process_index"))
        if isinstance(ranks, int) and isinstance(rank, int):
            return _of_accelerate(loader, sampler, rank, ranks) if ranks > 1 else None
    if type(loader).__name__ == "DataLoaderDispatcher":
        return Spread(0, 0, None, None)  # rank 0 reads, and gives each its part
    return None


def is_plain(batches: Any) -> bool:
    """Whether it can be seen that batches are not spread over ranks."""
    return isinstance(batches, DataLoader | list | tuple)


def _of_accelerate(loader: Any, sampler: Any, rank: int, ranks: int) -> Spread:
    inner = getattr(sampler, "batch_sampler", None)
    size = _length(getattr(inner, "sampler", None))
    batch = getattr(inner, "batch_size", None)
    if inner is None or not isinstance(batch, int):
        return Spread(rank, ranks, None, None)
    if getattr(sampler, "split_batches", False):
        batch //= ranks
    return Spread(rank, ranks, size, batch, block=batch)


def _length(data: Any) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None
