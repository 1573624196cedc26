"""Rows of a matrix: norms, blocks that stay in the cache, symmetric products, and the range of float64."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EPS64 = float(np.finfo(np.float64).eps)
CACHED_ENTRIES = 2**16  # 512 kB
TILE = 2048  # rows a side: a tile of their products takes 32 MB
WHOLE_PRODUCT = 2048  # columns up to which a symmetric product is taken in one piece
PRODUCT_COLUMNS = 1024  # columns of a block of wider ones
MIRROR_ROWS = 64  # rows that are mirrored at a time: their strip stays in a cache
SPACING = 8  # floats between rows whose width is a multiple of
CACHE_STRIDE = 64  # floats: walks down their columns, as NumPy mirrors a product, would share few lines of a cache
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


def row_blocks(count: int, width: int, entries: int = CACHED_ENTRIES) -> Iterator[slice]:
    """Cut rows of that width into blocks of so many entries, which stay in a core's cache unless told otherwise."""
    step = max(1, entries // max(width, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def row_norms(frame: Floats) -> Floats:
    """Return the Euclidean norm of every row, (C,)."""
    return np.asarray(np.sqrt(np.vecdot(frame, frame)))  # without an array of (C, d) squares


def spaced_zeros(shape: tuple[int, ...]) -> Floats:
    """Return zeros into which NumPy mirrors a symmetric product fast: a view, with a gap after each row where that helps."""
    return np.zeros(_spaced(shape))[..., : shape[-1]]


def _spaced(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] + (0 if shape[-1] % CACHE_STRIDE else SPACING))


class Products:
    """Adds symmetric products of rows of one width, by way of one array."""

    def __init__(self, width: int) -> None:
        self._width = width

    @cached_property
    def _product(self) -> Floats:
        return np.empty(_spaced((self._width, self._width)))[:, : self._width]

    def add(self, total: Floats, rows: Floats, *, minus: bool = False, fresh: bool = False) -> None:
        """Add ``rows.T @ rows`` to ``total``, subtract it, or write it if ``fresh``, in place: where wide, in its lower triangle alone."""
        combine = np.subtract if minus else np.add
        if self._width <= WHOLE_PRODUCT:
            product = np.matmul(rows.T, rows, out=total if fresh else self._product)
            if not fresh:
                combine(total, product, out=total)
            return
        # Wide rows are taken by blocks: threads of OpenBLAS crash in a symmetric product of 20,000 columns.
        for columns in row_blocks(self._width, 1, PRODUCT_COLUMNS):
            part = total[columns, : columns.stop]
            combine(part, rows[:, columns].T @ rows[:, : columns.stop], out=part)


def add_product(total: Floats, rows: Floats, *, minus: bool = False, fresh: bool = False) -> None:
    """Add one product, see `Products.add`."""
    Products(rows.shape[1]).add(total, rows, minus=minus, fresh=fresh)


def mirror(whole: npt.NDArray[Any]) -> None:
    """Copy the lower triangles of (..., d, d) matrices to the upper ones, in place."""
    for strip in row_blocks(whole.shape[-1], 1, MIRROR_ROWS):
        block, before = whole[..., strip, strip], slice(strip.start)
        block[...] = np.tril(block) + np.swapaxes(np.tril(block, -1), -2, -1)
        whole[..., before, strip] = np.swapaxes(whole[..., strip, before], -2, -1)
