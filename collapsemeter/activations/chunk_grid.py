"""Rows of an array that is stored in chunks, for the formats that do so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import Array, Refused

Index = tuple[int, ...]


def is_nan(value: Any) -> bool:
    """Whether a fill value is NaN: what is not stored is then left out and counted, and not made up.

    Examples
    --------
    >>> is_nan(np.float32("nan")), is_nan(0), is_nan(np.bool_(True))
    (True, False, False)
    """
    return bool(value != value)


def indices(counts: Index) -> Iterator[Index]:
    """Yield the index of each chunk, one by one: a file may claim more than memory holds.

    Examples
    --------
    >>> list(indices((2, 2)))
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    for i in range(counts[0] if math.prod(counts) else 0):
        for rest in indices(counts[1:]) if counts[1:] else [()]:
            yield (i, *rest)


class ChunkGrid:
    """An array cut into chunks of one shape; those at the end stick out of it.

    The chunk read last is kept: rows are read in order, and most often fewer than a chunk has.

    Parameters
    ----------
    array : Array
    chunk : tuple of int
        The shape of a chunk.
    fill : scalar
        What the format says that a chunk holds which is not stored. NaN is given back, for rows of NaN
        are left out and counted; anything else would be rows that nobody measured.
    decode : callable
        Returns the chunk of an index, or None if it is not stored.
    remedy : str
        What to do about a chunk that is not stored.

    Raises
    ------
    Refused
        By `rows`, if they touch a chunk that is not stored, and its fill value is not NaN.

    Examples
    --------
    >>> array = Array((5, 2), np.dtype("f8"))
    >>> stored = lambda at: np.full((2, 2), at[0]) if at[0] < 2 else None
    >>> ChunkGrid(array, (2, 2), np.nan, stored).rows(1, 5).tolist()
    [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [nan, nan]]
    >>> ChunkGrid(array, (2, 2), 0.0, stored).rows(1, 5)
    Traceback (most recent call last):
        ...
    collapsemeter.activations.array_file.Refused: has no stored values in rows 4 to 5 (chunk 2.0): they were never written
    """

    def __init__(
        self,
        array: Array,
        chunk: Index,
        fill: Any,
        decode: Callable[[Index], npt.NDArray[Any] | None],
        remedy: str = "they were never written",
    ) -> None:
        self._array, self._chunk, self._fill, self._decode = array, chunk, fill, decode
        self._remedy = remedy
        self._last: tuple[Index, npt.NDArray[Any] | None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of a chunk in memory."""
        return math.prod(self._chunk) * self._array.dtype.itemsize

    @property
    def height(self) -> int:
        """Rows of a chunk."""
        return self._chunk[0]

    @property
    def counts(self) -> Index:
        """How many chunks there are along each axis."""
        return tuple(-(-n // c) for n, c in zip(self._array.shape, self._chunk, strict=True))

    def missing(self, at: Index) -> None:
        """Refuse a chunk that is not stored, unless it is filled with NaN.

        Raises
        ------
        Refused
        """
        if is_nan(self._fill):
            return
        start = at[0] * self._chunk[0]
        stop = min(start + self._chunk[0], self._array.shape[0])
        raise Refused(
            f"has no stored values in rows {start} to {stop} (chunk {'.'.join(map(str, at))}): "
            f"{self._remedy}"
        )

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
                self.missing(at)
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
