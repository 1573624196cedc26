"""Rows of an array that is stored in chunks, for the formats that do so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import Array

Index = tuple[int, ...]


class ChunkGrid:
    """An array cut into chunks of one shape; those at the end stick out of it.

    The chunk read last is kept: rows are read in order, and most often fewer than a chunk has.

    Parameters
    ----------
    array : Array
    chunk : tuple of int
        The shape of a chunk.
    fill : scalar
        The value of chunks that are not stored.
    decode : callable
        Returns the chunk of an index, or None if it is not stored.

    Examples
    --------
    >>> array = Array((5, 2), np.dtype("i8"))
    >>> grid = ChunkGrid(array, (2, 2), 9, lambda at: np.full((2, 2), at[0]) if at[0] < 2 else None)
    >>> grid.rows(1, 5).tolist()
    [[0, 0], [1, 1], [1, 1], [9, 9]]
    """

    def __init__(
        self,
        array: Array,
        chunk: Index,
        fill: Any,
        decode: Callable[[Index], npt.NDArray[Any] | None],
    ) -> None:
        self._array, self._chunk, self._fill, self._decode = array, chunk, fill, decode
        self._last: tuple[Index, npt.NDArray[Any] | None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a chunk in memory."""
        return math.prod(self._chunk) * self._array.dtype.itemsize

    @property
    def height(self) -> int:
        """Rows of a chunk."""
        return self._chunk[0]

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the rows, decoding every chunk that they touch once."""
        shape = (stop - start, *self._array.shape[1:])
        rows = np.full(shape, self._fill, self._array.dtype)
        if rows.size == 0:
            return rows
        spans = ((start, stop), *((0, n) for n in self._array.shape[1:]))
        grid = (range(a // c, -(-b // c)) for (a, b), c in zip(spans, self._chunk, strict=True))
        for at in itertools.product(*grid):
            found = self._get(at)
            if found is None:
                continue
            target, source = [], []
            for i, c, (a, b) in zip(at, self._chunk, spans, strict=True):
                low, high = max(a, i * c), min(b, (i + 1) * c)
                target.append(slice(low - a, high - a))
                source.append(slice(low - i * c, high - i * c))
            rows[tuple(target)] = found[tuple(source)]
        return rows

    def _get(self, at: Index) -> npt.NDArray[Any] | None:
        if self._last is None or self._last[0] != at:
            self._last = None  # let go of it before the next one takes its memory
            self._last = at, self._decode(at)
        return self._last[1]
