"""Small batches wait until they make a block: one product of many rows costs less than many of few."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from collapsemeter.stats.sums import ABSENT

from .namespace import namespace_of
from .operations import BACKEND, COUNT, Key, Tensor

# Of a block. XLA has room for what the branch that adds it computes in every step: JAX's steps cost less with few.
MOST_ROWS = 256 if BACKEND == "jax" else 1024
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


def most_rows(width: int) -> int:
    """Return how many rows of all layers together, ``width`` wide, make a block where memory is no matter."""
    rows = min(MOST_ROWS, _MOST_BYTES // (4 * max(1, width)))
    return rows // FEWEST_ROWS * FEWEST_ROWS  # which batches of usual sizes fill


class WaitingRows:
    """Rows that are not in the sums yet: they are added when the next batch has no room behind them."""

    def __init__(
        self, widths: Mapping[Key, int], dtypes: Mapping[Key, str], size: int, make: MakeVariable
    ) -> None:
        self.size, self.most = size, size // _SHARE
        self.rows = {
            key: make((size, width), dtypes[key], f"{number}_waiting")
            for number, (key, width) in enumerate(widths.items())
        }
        self.labels = make((size,), "int32", "waiting_labels")
        self.decided = make((size,), COUNT, "waiting_decided")
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

    def block(self, count: Tensor | int) -> WaitingBlock:
        """Return the rows that wait; where only the device knows their number, other places are `ABSENT`."""
        *rows, labels, decided = (ops.convert_to_tensor(part.value) for part in self.variables)
        if isinstance(count, int):
            *rows, labels, decided = (part[:count] for part in (*rows, labels, decided))
        else:
            place = ops.arange(self.size, dtype=COUNT)
            labels = ops.where(place < count, labels, ABSENT)
        return WaitingBlock(dict(zip(self.rows, rows, strict=True)), labels, decided)

    def start_anew(self) -> None:
        """Write to everything that was read: JAX copies at every step what a branch only reads."""
        for variable in self.variables:
            namespace_of(variable).write(variable, ops.zeros((1, *variable.shape[1:])), 0)

    def on_host(self, key: Key, count: int) -> tuple[Array, Array, Array]:
        """Return rows of a layer, labels and decisions of what waits."""
        parts = (self.rows[key], self.labels, self.decided)
        rows, labels, decided = (
            keras.ops.convert_to_numpy(variable.value)[:count] for variable in parts
        )
        return rows, labels.astype(np.int64), decided.astype(np.int64)
