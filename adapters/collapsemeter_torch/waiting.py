"""Small batches wait on their device until they make a block; of a block a few rows go into the sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Block, RowNumbers, block_of

MOST_ROWS = 4096
FEWEST_ROWS = 32  # of a block that is worth the wait
MOST_ENTRIES, MOST_ENTRIES_ON_DEVICE = 2**21, 2**23  # 8 and 32 MB in float32
_LEAST_PART = 16  # rows: of smaller batches there would be too many


def most_rows(width: int, device: torch.device) -> int:
    """Return how many rows of a layer make a block where memory is no matter."""
    entries = MOST_ENTRIES if device.type == "cpu" else MOST_ENTRIES_ON_DEVICE
    return min(MOST_ROWS, entries // width)


class WaitingRows:
    """Rows of one layer that are not in the sums yet, with their labels and numbers.

    One product of many rows costs less than many of few, and every operation costs the host about ten
    microseconds, however few the rows.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.most = room // 2  # rows of a batch that waits: at least two make a block
        self.count = 0
        self._rows: Tensor | None = None
        # Where batches of the first one's size go: to make a view takes as long as to copy the rows.
        self._parts: tuple[Tensor, ...] = ()
        self._batches: list[tuple[Tensor, RowNumbers]] = []

    def put(self, rows: Tensor, labels: Tensor, numbers: RowNumbers) -> bool:
        """Copy the rows of a batch, half-precision ones as float32; keep its labels and numbers; whether one more has no room."""
        if self._rows is None:
            self._rows = self._memory_for(rows)
        size, start = rows.shape[0], self.count
        if self._parts and size == self._parts[0].shape[0] and not start % size:
            self._parts[start // size].copy_(rows)
        else:
            self._rows[start : start + size].copy_(rows)
        self.count += size
        self._batches.append((labels, numbers))
        return self.count + size > self.room

    def _memory_for(self, rows: Tensor) -> Tensor:
        size, wide = rows.shape[0], torch.promote_types(rows.dtype, torch.float32)
        with torch.inference_mode(False):
            memory = rows.new_empty(self.room, rows.shape[1], dtype=wide)
            if size >= _LEAST_PART:
                self._parts = memory.split(size)
        return memory

    def held(self) -> tuple[Tensor, Block]:
        """Return what waits, which must be something; rows are a view of the memory."""
        assert self._rows is not None
        return self._rows[: self.count], block_of(self._batches)

    def take(self) -> tuple[Tensor, Block]:
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

    def take(self) -> Block:
        """Return what waits, which must be something, as the labels of a block, and start again."""
        block = Block(self._batches)
        self.clear()
        return block

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
