"""Small batches wait on their device until they make a block; of a block a few rows go into the sample."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from collapsemeter.stats.sampling import (
    GROUPS,
    dealt_groups,
    dealt_range,
    low_32_bits,
    reservoir_rows,
)

MOST_ROWS = 4096
MOST_ENTRIES, MOST_ENTRIES_ON_DEVICE = 2**21, 2**23  # 8 and 32 MB in float32
_LEAST_PART = 16  # rows: of smaller batches there would be too many

RowNumbers = range | npt.NDArray[np.int64]  # as the sample counts them


class WaitingRows:
    """Rows of one layer that are not in the sums yet, with their labels and numbers.

    One product of many rows costs less than many of few, and every operation costs the host about ten
    microseconds, however few the rows.
    """

    def __init__(self, width: int, on_device: bool = False) -> None:
        entries = MOST_ENTRIES_ON_DEVICE if on_device else MOST_ENTRIES
        self.room = min(MOST_ROWS, entries // width)
        self.most = self.room // 2  # rows of a batch that waits: at least two make a block
        self.count = 0
        self._rows: Tensor | None = None
        # Where batches of the first one's size go: to make a view takes as long as to copy the rows.
        self._parts: tuple[Tensor, ...] = ()
        self._batches: list[tuple[Tensor, RowNumbers]] = []

    def put(self, rows: Tensor, labels: Tensor, numbers: RowNumbers) -> None:
        """Copy the rows of a batch, half-precision ones as float32; keep its labels and numbers."""
        if self._rows is None:
            self._rows = self._memory_for(rows)
        size, start = rows.shape[0], self.count
        if self._parts and size == self._parts[0].shape[0] and not start % size:
            self._parts[start // size].copy_(rows)
        else:
            self._rows[start : start + size].copy_(rows)
        self.count += size
        self._batches.append((labels, numbers))

    def _memory_for(self, rows: Tensor) -> Tensor:
        size, wide = rows.shape[0], torch.promote_types(rows.dtype, torch.float32)
        with torch.inference_mode(False):
            memory = rows.new_empty(self.room, rows.shape[1], dtype=wide)
            if size >= _LEAST_PART:
                self._parts = memory.split(size)
        return memory

    def held(self) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
        """Return what waits, which must be something; rows are a view of the memory."""
        assert self._rows is not None
        labels, numbers = zip(*self._batches, strict=True)
        return self._rows[: self.count], torch.cat(labels), joined(numbers)

    def take(self) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
        """Return what waits and start again in the same memory: use it before the next `put`."""
        held = self.held()
        self.clear()
        return held

    def clear(self) -> None:
        """Drop what waits."""
        self.count, self._batches = 0, []

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        parts = (self._rows, *(labels for labels, _ in self._batches))
        return sum(part.nbytes for part in parts if part is not None)


class WaitingDecisions:
    """Decisions of the head that are not in the sample yet, with the numbers of their rows."""

    def __init__(self) -> None:
        self.clear()

    def put(self, decided: Tensor, numbers: RowNumbers) -> bool:
        """Keep the decisions of a batch, which nobody else writes into; whether there are many now."""
        self._batches.append((decided, numbers))
        self._count += 1 + decided.shape[0]  # many batches without rows are many, too
        return self._count >= MOST_ROWS

    def take(self) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return what waits, which must be something, and start again."""
        decided, numbers = zip(*self._batches, strict=True)
        self.clear()
        return torch.cat(decided), joined(numbers)

    def clear(self) -> None:
        """Drop what waits."""
        self._count = 0
        self._batches: list[tuple[Tensor, RowNumbers]] = []

    def __bool__(self) -> bool:
        return bool(self._batches)


class SampledDecisions:
    """The network's own decisions on the sampled rows, by row number."""

    def __init__(self, device: torch.device, sample_size: int) -> None:
        self.made_in_graph = torch.compiler.is_compiling()
        self.predictions = torch.zeros(sample_size + 1, dtype=torch.int64, device=device)
        self.ids = torch.full((sample_size + 1,), -1, dtype=torch.int64, device=device)

    def add(self, predictions: Tensor, slots: Tensor, ids: Tensor) -> None:
        """Keep the decisions on the rows that have a slot."""
        self.predictions.index_copy_(0, slots, predictions)
        self.ids.index_copy_(0, slots, ids)

    def make_ordinary(self) -> None:
        """Make ordinary tensors of what a compiled graph made, as `DeviceSums.make_ordinary`."""
        if self.made_in_graph or self.ids.is_inference():
            self.ids, self.predictions = self.ids.clone(), self.predictions.clone()
        self.made_in_graph = False

    def clear(self) -> None:
        """Forget every decision."""
        self.ids.fill_(-1)


def joined(numbers: Sequence[RowNumbers]) -> npt.NDArray[np.int64]:
    """Return row numbers of several batches as one array."""
    ranges = [n for n in numbers if isinstance(n, range) and n.step == 1]
    follow = all(first.stop == second.start for first, second in itertools.pairwise(ranges))
    if ranges and follow and len(ranges) == len(numbers):  # the rule, in a process that is alone
        return np.arange(ranges[0].start, ranges[-1].stop)
    return np.concatenate(
        [np.arange(n.start, n.stop, n.step) if isinstance(n, range) else n for n in numbers]
    )


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for what it still has to do, which takes pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def sampled(numbers: bytes, seed: int, sample_ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return which rows of a block go into the sample, into which slots, and their numbers, if any do.

    ``numbers`` are the bytes of int64. A row whose slot a later one took while it waited goes to the bin, the last of ``sample_ids``.
    """
    size = len(sample_ids) - 1
    picked = _picked(numbers, size, seed)
    if not picked.size:
        return None
    places, slots, ids = to_device(torch.from_numpy(picked), sample_ids.device)
    return places, torch.where(ids > sample_ids.index_select(0, slots), slots, size), ids


@functools.lru_cache(maxsize=1)  # every layer asks, and so do decisions
def _picked(numbers: bytes, size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return rows, slots and numbers of those that have a slot."""
    plain = np.frombuffer(numbers, np.int64)
    rows, slots = reservoir_rows(plain, size, seed)
    return np.stack([rows, slots, plain[rows]])


@functools.lru_cache(maxsize=1)
def dealt(numbers: bytes) -> npt.NDArray[np.uint8]:
    """Return the group of each row among 16; of a row without a number any."""
    plain = np.frombuffer(numbers, np.int64)
    first = int(plain.min(initial=2**62, where=plain >= 0))
    count = int(plain.max(initial=-1)) - first + 1
    if 0 < count <= GROUPS * len(plain):  # else those of one process among very many
        of_range = dealt_range(first, count, GROUPS).astype(np.uint8)
        groups: npt.NDArray[np.uint8] = of_range[np.maximum(plain - first, 0)]
        return groups
    return np.asarray(dealt_groups(plain, GROUPS, low_32_bits), np.uint8)
