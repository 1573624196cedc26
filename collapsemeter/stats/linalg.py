"""Rows of a matrix: their norms, blocks that stay in the cache, and the range of float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EPS64 = float(np.finfo(np.float64).eps)
_BLOCK = 2**16  # entries: 512 kB
TILE = 2048  # rows a side: a tile of their products takes 32 MB
LARGEST = 1e75  # fourth powers stay in float64; float32 ends at 3e38


def of_rows(frame: Floats) -> bool:
    """Return whether the inner products of the rows are taken, and not those of the columns."""
    return bool(len(frame) <= frame.shape[1] + 1)


def bounded(values: Floats) -> bool:
    """Return whether no value is NaN, infinite or so large that its fourth power overflows."""
    return bool(values.max(initial=0.0) <= LARGEST and values.min(initial=0.0) >= -LARGEST)


def taken(values: Floats, places: npt.NDArray[np.int64]) -> Floats:
    """Return the values of these classes, in order; all of them without a copy."""
    return values if len(places) == len(values) else values[places]


def row_blocks(frame: Floats) -> Iterator[slice]:
    """Cut the rows into blocks on which several steps are worked in a core's cache.

    Examples
    --------
    >>> list(row_blocks(np.zeros((5, 2**15))))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, _BLOCK // max(frame.shape[1], 1))
    for start in range(0, len(frame), step):
        yield slice(start, min(start + step, len(frame)))


def row_norms(frame: Floats) -> Floats:
    """Return the Euclidean norm of every row, (C,)."""
    squares: Floats = np.vecdot(frame, frame)  # without an array of (C, d) squares
    return np.sqrt(squares)
