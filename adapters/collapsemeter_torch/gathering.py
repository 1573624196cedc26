"""Small batches wait on their device until they make a block."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST_ROWS, MOST_ENTRIES = 1024, 2**21  # 8 MB in float32


class Gathered:
    """Rows that are not in the sums yet, with their labels and hashes.

    One product of many rows costs less than many of few, and on a GPU every operation of an update
    costs the host about ten microseconds, however few the rows. To copy a batch is one of them.

    Parameters
    ----------
    width : int
        d.

    Examples
    --------
    >>> gathered = Gathered(width=2)
    >>> gathered.put({"rows": torch.ones(3, 2), "labels": torch.tensor([0, 1, 1])})
    >>> gathered.take()["labels"]
    tensor([0, 1, 1])
    """

    def __init__(self, width: int) -> None:
        self.room = min(MOST_ROWS, MOST_ENTRIES // width)
        self.count = 0
        self._blocks: dict[str, Tensor] = {}

    def takes(self, rows: int) -> bool:
        """Whether a batch is so small that at least two make a block."""
        return 2 * rows <= self.room

    def fits(self, rows: int) -> bool:
        """Whether there is room for so many more."""
        return self.count + rows <= self.room

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """Copy a batch; half-precision rows as float32."""
        for name, part in parts.items():
            if name not in self._blocks:
                half = part.is_floating_point() and part.itemsize < 4
                self._blocks[name] = torch.empty(
                    self.room,
                    *part.shape[1:],
                    dtype=torch.float32 if half else part.dtype,
                    device=part.device,
                )
            self._blocks[name][self.count : self.count + len(part)].copy_(part)
        self.count += len(parts["labels"])

    def held(self) -> dict[str, Tensor]:
        """Return what waits, if anything; views of the memory."""
        if not self.count:
            return {}
        return {name: block[: self.count] for name, block in self._blocks.items()}

    def take(self) -> dict[str, Tensor]:
        """Return what waits and start again in the same memory: use it before the next `put`."""
        parts, self.count = self.held(), 0
        return parts

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(block.nbytes for block in self._blocks.values())
