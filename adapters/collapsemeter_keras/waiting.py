"""Small batches wait until they make a block: one product of many rows costs less than many of few."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from .namespace import namespace_of
from .operations import COUNT, Key, Tensor

MOST_ROWS = 1024  # of a block
FEWEST_ROWS = 64  # of one that is worth the wait
_SHARE = 4  # a batch of more than this part of a block is added at once
_MOST_BYTES = 2**22  # of a stream

MakeVariable = Callable[[tuple[int, ...], str, str], keras.Variable]
Array = npt.NDArray[Any]


class WaitingBlock(NamedTuple):
    """Rows of every layer, with their labels and decisions."""

    rows: Mapping[Key, Tensor]
    labels: Tensor
    decided: Tensor


def block_rows_of(width: int, nbytes: float = _MOST_BYTES) -> int:
    """Return how many rows of all layers together, ``width`` wide, make a block."""
    rows = int(min(nbytes, _MOST_BYTES)) // (4 * max(1, width) * (_SHARE + 1)) * _SHARE
    return min(MOST_ROWS, rows)


def waiting_bytes(width: int, most: float) -> int:
    """Return what the rows of a stream take while they wait."""
    rows = block_rows_of(width, most)
    return 4 * width * (rows + rows // _SHARE) if rows >= FEWEST_ROWS else 0


class WaitingRows:
    """Rows that are not in the sums yet: a block, and room for the batch that fills it."""

    def __init__(
        self, widths: Mapping[Key, int], dtypes: Mapping[Key, str], size: int, make: MakeVariable
    ) -> None:
        self.size, self.spare = size, size // _SHARE
        whole = self.size + self.spare
        self.rows = {
            key: make((whole, width), dtypes[key], f"{number}_waiting")
            for number, (key, width) in enumerate(widths.items())
        }
        self.labels = make((whole,), "int32", "waiting_labels")
        self.decided = make((whole,), COUNT, "waiting_decided")
        self.count = make((), COUNT, "waiting")

    @property
    def variables(self) -> list[keras.Variable]:
        """All but the count."""
        return [*self.rows.values(), self.labels, self.decided]

    def put(self, batch: WaitingBlock, start: Tensor | int) -> None:
        """Write a batch behind those that wait."""
        parts = [*(batch.rows[key] for key in self.rows), batch.labels, batch.decided]
        for variable, values in zip(self.variables, parts, strict=True):
            namespace_of(variable).write(variable, values, start)

    def block(self) -> WaitingBlock:
        """Return the block, which is full."""
        *rows, labels, decided = (
            namespace_of(variable).read(variable)[: self.size] for variable in self.variables
        )
        return WaitingBlock(dict(zip(self.rows, rows, strict=True)), labels, decided)

    def start_anew(self) -> None:
        """Move what is behind the block, which was added, to its place."""
        for variable in self.variables:
            operations = namespace_of(variable)
            operations.write(variable, operations.read(variable)[self.size :], 0)

    def on_host(self, key: Key, count: int) -> tuple[Array, Array, Array]:
        """Return rows of a layer, labels and decisions of what waits."""
        parts = (self.rows[key], self.labels, self.decided)
        rows, labels, decided = (
            keras.ops.convert_to_numpy(variable.value)[:count] for variable in parts
        )
        return rows, labels.astype(np.int64), decided.astype(np.int64)
