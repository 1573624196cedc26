"""Pairs of classes: one pass over tiles of their cosines, in bounded memory and in threads.

A tile comes of one matrix product, in the threads of BLAS. Then threads of ours take bands of its rows, and
work on each in strips that stay in a core's cache. What is asked of the pairs is summed band by band, and
the sums are added in the order of the bands: they do not depend on the threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from threading import local
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from .frames import EPS64, Floats
from .pair_sums import COSINE_BINS, CosineSpread, Histogram, LogDistances, Nearest, VarianceRatio
from .threads import threads

__all__ = [
    "COSINE_BINS",
    "TILE",
    "CosineSpread",
    "PairStatistics",
    "VarianceRatio",
    "cosine_spread",
    "observe",
    "pair_statistics",
    "spread_of",
]

TILE = 2048  # classes a side: a tile of pairs takes 32 MB
_BAND = 256  # rows of a tile that a thread takes at a time
_STRIP = 2**16  # entries that are worked on at a time: 512 kB
_CANCELLED = 1e-6  # where 1 - cos is below, the distance is taken from the difference of the rows

Rows = npt.NDArray[np.int64]


class PairStatistics(NamedTuple):
    """Statistics over the pairs of rows of a frame: cosines and log distances of unit rows.

    ``nearest`` (C,) is the row of the largest cosine to each, ``histogram`` (100,) counts the cosines of
    all pairs in bins of equal width over [-1, 1].
    """

    cos_std: float
    cos_deviation: float
    log_mean: float
    log_variance: float
    worst_cosine: Floats
    nearest: npt.NDArray[np.int64]
    histogram: npt.NDArray[np.int64]


def pair_tiles(count: int) -> Iterator[tuple[slice, slice]]:
    """Squares that cover one triangle of the pairs."""
    starts = range(0, count, TILE)
    for i in starts:
        for j in starts:
            if j >= i:
                yield slice(i, min(i + TILE, count)), slice(j, min(j + TILE, count))


class Buffers(local):
    """Memory of one thread for the values of a strip, used again for the next."""

    def __init__(self) -> None:
        self._held: dict[str, Floats] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> Floats:
        """Return an array of that shape; what it held under that name is lost."""
        size = math.prod(shape)
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size)
        return self._held[name][:size].reshape(shape)


class Strip:
    """Cosines of some rows of a frame to others: rows of one tile.

    In a tile on the diagonal every pair stands twice, and a row's cosine to itself is -inf.

    Parameters
    ----------
    rows, columns : slice
        Of the frame.
    cosines : (m, n) float64
    diagonal : bool
        Whether the tile is on the diagonal.
    buffers : Buffers
    """

    def __init__(
        self, rows: slice, columns: slice, cosines: Floats, diagonal: bool, buffers: Buffers
    ) -> None:
        self.rows, self.columns, self.cosines, self.diagonal = rows, columns, cosines, diagonal
        self._buffers = buffers
        if diagonal:
            own = np.arange(len(cosines))
            cosines[own, own + rows.start - columns.start] = -np.inf

    def scratch(self, name: str = "scratch") -> Floats:
        """Return memory for a value of every cosine; what was asked for by that name before is lost."""
        return self._buffers.array(name, self.cosines.shape)

    def pairs(self, values: Floats) -> Floats:
        """Return the values of the pairs a < b as a vector: a view, or a copy on the diagonal."""
        if not self.diagonal:
            return values.reshape(-1)
        upper: Floats = values[self._upper]
        return upper

    @cached_property
    def _upper(self) -> npt.NDArray[np.bool_]:
        rows, columns = (np.arange(part.start, part.stop) for part in (self.rows, self.columns))
        return columns > rows[:, None]

    @cached_property
    def largest_by_row(self) -> Floats:
        """The largest cosine of each row, (m,)."""
        return np.asarray(self.cosines.max(axis=1))

    @cached_property
    def largest(self) -> float:
        """The largest cosine."""
        return float(self.largest_by_row.max())

    @cached_property
    def near(self) -> tuple[Rows, Rows]:
        """Where rows are so near each other that the cosine has not the digits of their distance."""
        if self.largest <= 1 - _CANCELLED:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        i, j = np.nonzero(self.cosines > 1 - _CANCELLED)
        return i, j

    def near_distances(self, frame: Floats) -> Floats:
        """Squared distances of the rows of a frame where they are near, from their differences."""
        i, j = self.near[0] + self.rows.start, self.near[1] + self.columns.start
        step = max(1, TILE * TILE // max(frame.shape[1], 1))
        parts = [
            ((frame[i[at : at + step]] - frame[j[at : at + step]]) ** 2).sum(axis=1)
            for at in range(0, len(i), step)
        ]
        return np.concatenate([np.zeros(0), *parts])


def strips(units: Floats) -> Iterator[Strip]:
    """Strips that cover every pair of unit rows; their cosines are overwritten by the next tile's."""
    buffers = Buffers()
    for tile in _tiles(units):
        for band in tile.bands():
            yield from tile.strips(band, buffers)


class _Tile(NamedTuple):
    """Cosines of a square of pairs."""

    rows: slice
    columns: slice
    cosines: Floats

    def bands(self) -> list[slice]:
        """Return the parts of its rows that threads work on."""
        starts = range(self.rows.start, self.rows.stop, _BAND)
        return [slice(start, min(start + _BAND, self.rows.stop)) for start in starts]

    def strips(self, band: slice, buffers: Buffers) -> Iterator[Strip]:
        step = max(1, _STRIP // self.cosines.shape[1])
        for start in range(band.start, band.stop, step):
            rows = slice(start, min(start + step, band.stop))
            cosines = self.cosines[start - self.rows.start : rows.stop - self.rows.start]
            yield Strip(rows, self.columns, cosines, self.rows == self.columns, buffers)


def _tiles(units: Floats) -> Iterator[_Tile]:
    """Tiles of one triangle; the cosines are overwritten by the next tile's."""
    buffer = np.empty(min(TILE, len(units)) ** 2)
    for rows, columns in pair_tiles(len(units)):
        shape = rows.stop - rows.start, columns.stop - columns.start
        cosines = buffer[: shape[0] * shape[1]].reshape(shape)
        np.matmul(units[rows], units[columns].T, out=cosines)
        yield _Tile(rows, columns, cosines)


def _known(cosines: Floats) -> _Tile:
    """All pairs as one tile."""
    every = slice(0, len(cosines))
    return _Tile(every, every, cosines)


class Observer(Protocol):
    """What adds up something over the pairs; it leaves the cosines of a strip as they are."""

    def empty(self) -> Self:
        """Return one that has seen nothing yet."""

    def add(self, strip: Strip) -> None:
        """Take in one strip."""

    def merge(self, part: Self) -> None:
        """Take in what another has added up of the pairs that come next."""


def observe(units: Floats, observers: Sequence[Observer]) -> None:
    """Hand every pair of unit rows to every observer, bands of a tile at a time in threads."""
    _observe(_tiles(units), observers)


def _observe(tiles: Iterable[_Tile], observers: Sequence[Observer]) -> None:
    buffers = Buffers()
    with threads() as in_order:
        for tile in tiles:

            def of_band(band: slice, tile: _Tile = tile) -> list[Observer]:
                parts = [observer.empty() for observer in observers]
                for strip in tile.strips(band, buffers):
                    for part in parts:
                        part.add(strip)
                return parts

            for parts in in_order(of_band, tile.bands()):
                for observer, part in zip(observers, parts, strict=True):
                    observer.merge(part)


def cosine_spread(units: Floats) -> CosineSpread:
    r"""Spread of the cosines over all pairs of unit rows.

    Parameters
    ----------
    units : (C, d) float64
        Rows of unit length, C >= 2.

    Returns
    -------
    CosineSpread

    Examples
    --------
    >>> cosine_spread(np.eye(3)).cos_std, cosine_spread(np.eye(3)).cos_deviation
    (0.0, 0.5)
    """
    spread = CosineSpread(len(units))
    observe(units, [spread])
    return spread


def spread_of(cosines: Floats) -> CosineSpread:
    """Spread of cosines that are known, (C, C): their diagonal is lost.

    Examples
    --------
    >>> spread_of(np.eye(3)).cos_deviation
    0.5
    """
    spread = CosineSpread(len(cosines))
    _observe([_known(cosines)], [spread])
    return spread


def pair_statistics(
    units: Floats,
    resolution: float = 16 * EPS64,
    beside: Sequence[Observer] = (),
    cosines: Floats | None = None,
) -> PairStatistics:
    r"""Statistics over all pairs of unit rows, in tiles of bounded memory.

    Parameters
    ----------
    units : (C, d) float64
        Rows of unit length, C >= 2.
    resolution : float
        Distance up to which two rows are the same direction: the round-off of the rows.
    beside : sequence of Observer
        What else is to see the same strips.
    cosines : (C, C) float64, optional
        Of the rows, where they are known; their diagonal is lost.

    Returns
    -------
    PairStatistics
        Population standard deviation of the cosines; mean :math:`|\cos + 1/(C-1)|`; mean and
        population variance of :math:`-\log|u_a - u_b|`, infinite where two rows are one direction;
        the largest cosine of each row to another, and to which (the first of several); how many
        cosines fall into each of 100 bins of equal width over [-1, 1].

    Examples
    --------
    >>> from collapsemeter.frames import simplex_etf
    >>> statistics = pair_statistics(simplex_etf(4, 3))
    >>> statistics.worst_cosine.round(12)
    array([-0.33333333, -0.33333333, -0.33333333, -0.33333333])
    >>> int(statistics.histogram[33]), int(statistics.histogram.sum())  # all pairs near -1/3
    (6, 6)
    """
    spread, histogram = CosineSpread(len(units)), Histogram()
    nearest, logs = Nearest(len(units)), LogDistances(units, resolution)
    tiles = _tiles(units) if cosines is None else [_known(cosines)]
    _observe(tiles, [spread, histogram, nearest, logs, *beside])
    return PairStatistics(
        cos_std=spread.cos_std,
        cos_deviation=spread.cos_deviation,
        log_mean=logs.mean,
        log_variance=logs.variance,
        worst_cosine=nearest.cosines,
        nearest=nearest.rows,
        histogram=histogram.counts,
    )
