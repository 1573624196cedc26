"""Small batches wait on their device until they make a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST_ROWS = 4096
MOST_ENTRIES, MOST_ENTRIES_ON_DEVICE = 2**21, 2**23  # 8 and 32 MB in float32

Numbers = range | npt.NDArray[np.int64]  # of rows, as the sample counts them


class Gathered:
    """Rows that are not in the sums yet, with their labels and numbers.

    One product of many rows costs less than many of few, and every operation costs the host about ten
    microseconds, however few the rows: on a GPU, and on a CPU whose caches the training has filled with
    its own. To copy a batch is one of them; its labels are ours, and wait as they are.

    Parameters
    ----------
    width : int
        d.
    on_device : bool
        Whether the rows are on an accelerator, where only a large block fills it.

    Examples
    --------
    >>> gathered = Gathered(width=2)
    >>> gathered.put(torch.ones(2, 2), torch.tensor([0, 1]), range(2))
    >>> gathered.put(torch.ones(1, 2), torch.tensor([1]), range(2, 3))
    >>> gathered.take()[1:]
    (tensor([0, 1, 1]), array([0, 1, 2]))
    """

    def __init__(self, width: int, on_device: bool = False) -> None:
        entries = MOST_ENTRIES_ON_DEVICE if on_device else MOST_ENTRIES
        self.room = min(MOST_ROWS, entries // width)
        self.count = 0
        self._rows: Tensor | None = None
        self._labels: list[Tensor] = []
        self._numbers: list[Numbers] = []

    def takes(self, rows: int) -> bool:
        """Whether a batch is so small that at least two make a block."""
        return 0 < rows <= self.room // 2

    def fits(self, rows: int) -> bool:
        """Whether there is room for so many more."""
        return self.count + rows <= self.room

    def put(self, rows: Tensor, labels: Tensor, numbers: Numbers) -> None:
        """Copy the rows of a batch, half-precision ones as float32; keep its labels and numbers."""
        if self._rows is None:
            wide = torch.promote_types(rows.dtype, torch.float32)
            self._rows = rows.new_empty(self.room, rows.shape[1], dtype=wide)
        self._rows.narrow(0, self.count, len(rows)).copy_(rows)
        self.count += len(rows)
        self._labels.append(labels)
        self._numbers.append(numbers)

    def held(self) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
        """Return what waits, which must be something; rows are a view of the memory."""
        assert self._rows is not None
        return self._rows[: self.count], torch.cat(self._labels), joined(self._numbers)

    def take(self) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
        """Return what waits and start again in the same memory: use it before the next `put`."""
        held = self.held()
        self.clear()
        return held

    def clear(self) -> None:
        """Drop what waits."""
        self.count, self._labels, self._numbers = 0, [], []

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(part.nbytes for part in (self._rows, *self._labels) if part is not None)


class Decisions:
    """Decisions of the head that are not in the sample yet, with the numbers of their rows.

    Examples
    --------
    >>> decisions = Decisions()
    >>> decisions.put(torch.tensor([5, 6]), range(2))
    >>> decisions.take()
    (tensor([5, 6]), array([0, 1]))
    """

    def __init__(self) -> None:
        self.clear()

    def fits(self, rows: int) -> bool:
        """Whether there is room for so many more."""
        return not self._decided or (
            self._count + rows <= MOST_ROWS and len(self._decided) < MOST_ROWS
        )

    def put(self, decided: Tensor, numbers: Numbers) -> None:
        """Keep the decisions of a batch, which nobody else writes into."""
        self._decided.append(decided)
        self._numbers.append(numbers)
        self._count += len(decided)

    def take(self) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Return what waits, which must be something, and start again."""
        taken = torch.cat(self._decided), joined(self._numbers)
        self.clear()
        return taken

    def clear(self) -> None:
        """Drop what waits."""
        self._count = 0
        self._decided: list[Tensor] = []
        self._numbers: list[Numbers] = []

    def __bool__(self) -> bool:
        return bool(self._decided)


def joined(numbers: Sequence[Numbers]) -> npt.NDArray[np.int64]:
    """Return row numbers of several batches as one array.

    Examples
    --------
    >>> joined([range(2), np.array([-1, 2])])
    array([ 0,  1, -1,  2])
    """
    parts = [np.arange(n.start, n.stop) if isinstance(n, range) else n for n in numbers]
    return np.concatenate(parts)
