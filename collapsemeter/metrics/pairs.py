"""Pairs of classes: one pass over tiles of their cosines, in bounded memory and in threads.

A tile comes of one matrix product, in the threads of BLAS. Then threads of ours take bands of its rows, and
work on each in strips that stay in a core's cache. What is asked of the pairs is summed band by band, and
the sums are added in the order of the bands: they do not depend on the threads.

Of very many rows the cosines are taken in float32, which halves the product and the passes over it. A cosine
is then off by some 3e-7, to either side. Of C > 2 d unit rows in d dimensions whose mean cosine is m <= 1/2 the
cosines have a standard deviation of (1 - m) / sqrt(2 d) at least, as of the bound of Welch 1974, which is far
above that; and a mean over n pairs loses 3e-7 / sqrt(n), of eight million pairs or more 1e-10. A function of
1 - cos loses the more the nearer the rows: rows that have another within _NEAR are taken again in float64, so that
a mean is left with 3e-7 / _NEAR / sqrt(n), where the n nearest pairs are a share of _NEAR of all or are not what
it is made of: 1e-8. Sums of a thousand are in float32, and lose about as much; those are added in float64.
The largest cosine of each row is found again in float64 (`Nearest.settle`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from threading import local
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from ..stats.blas import product
from ..stats.linalg import EPS64, TILE, Floats
from ..system.threads import InOrder, threads
from .pair_sums import (
    COSINE_BINS,
    CosineSpread,
    Histogram,
    LogDistances,
    Nearest,
    Reals,
    VarianceRatio,
)

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

_BAND = 256  # rows of a tile that a thread takes at a time
_STRIP = 2**17  # entries that are worked on at a time: of fewer, threads wait for each other
_MANY = 4096  # rows, from which on their cosines may be in float32
_SINGLE_TILE = 2  # times as many a side: BLAS's threads stay awake for a while after every tile
_NEAR = 0.05  # rows that have a cosine above 1 less this are not left in float32
_CANCELLED = 1e-6  # where 1 - cos is below, the distance is taken from the difference of the rows

Rows = npt.NDArray[np.int64]

_NONE, _NOTHING = np.zeros(0, np.int64), np.zeros((0, 0))


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


def pair_tiles(count: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Squares that cover one triangle of the pairs."""
    starts = range(0, count, side)
    for i in starts:
        for j in starts:
            if j >= i:
                yield slice(i, min(i + side, count)), slice(j, min(j + side, count))


class Buffers(local):
    """Memory of one thread for the values of a strip, used again for the next."""

    def __init__(self) -> None:
        self._held: dict[np.dtype[Any], Reals] = {}

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Reals:
        """Return an array of that shape; what the last of that type held is lost."""
        size = math.prod(shape)
        if dtype not in self._held or self._held[dtype].size < size:
            self._held[dtype] = np.empty(size, dtype)
        return self._held[dtype][:size].reshape(shape)


class Strip:
    """Cosines of some rows of a frame to others: rows of one tile.

    In a tile on the diagonal every pair stands twice, and a row's cosine to itself is -inf.

    Parameters
    ----------
    rows, columns : slice
        Of the frame.
    cosines : (m, n) float64 or float32
    diagonal : bool
        Whether the tile is on the diagonal.
    buffers : Buffers
    largest : (m,) array, optional
        The largest cosine of each row, where it is known.
    """

    def __init__(
        self,
        rows: slice,
        columns: slice,
        cosines: Reals,
        diagonal: bool,
        buffers: Buffers,
        largest: Reals | None = None,
    ) -> None:
        self.rows, self.columns, self.cosines, self.diagonal = rows, columns, cosines, diagonal
        self._buffers, self._largest = buffers, largest
        if diagonal:
            own = np.arange(len(cosines))
            cosines[own, own + rows.start - columns.start] = -np.inf

    def scratch(self) -> Reals:
        """Return memory for a value of every cosine; what was asked for before is lost."""
        return self._buffers.array(self.cosines.shape, self.cosines.dtype)

    def pairs(self, values: Reals) -> Reals:
        """Return the values of the pairs a < b as a vector: a view, or a copy on the diagonal."""
        if not self.diagonal:
            return values.reshape(-1)
        upper: Reals = values[self._upper]
        return upper

    @cached_property
    def _upper(self) -> npt.NDArray[np.bool_]:
        rows, columns = (np.arange(part.start, part.stop) for part in (self.rows, self.columns))
        return columns > rows[:, None]

    @cached_property
    def largest_by_row(self) -> Reals:
        """The largest cosine of each row, (m,)."""
        return _largest_by_row(self.cosines) if self._largest is None else self._largest

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
    """Cosines of a square of pairs; those of ``again``, some of its rows, in float64 besides.

    ``largest``: of each row, where it is known.
    """

    rows: slice
    columns: slice
    cosines: Reals
    again: Rows
    exact: Floats
    largest: Reals | None = None

    def bands(self) -> list[slice]:
        """Return the parts of its rows that threads work on."""
        starts = range(self.rows.start, self.rows.stop, _BAND)
        return [slice(start, min(start + _BAND, self.rows.stop)) for start in starts]

    def strips(self, band: slice, buffers: Buffers) -> Iterator[Strip]:
        step = max(1, _STRIP * 8 // (self.cosines.itemsize * self.cosines.shape[1]))
        for start in range(band.start, band.stop, step):
            rows = slice(start, min(start + step, band.stop))
            first, last = start - self.rows.start, rows.stop - self.rows.start
            cosines = self.cosines[first:last]
            largest = None if self.largest is None else self.largest[first:last]
            low, high = np.searchsorted(self.again, (first, last))
            if low < high:
                cosines, largest = cosines.astype(np.float64), None
                cosines[self.again[low:high] - first] = self.exact[low:high]
            yield Strip(rows, self.columns, cosines, self.rows == self.columns, buffers, largest)


def _tiles(units: Floats) -> Iterator[_Tile]:
    """Tiles of one triangle; the cosines are overwritten by the next tile's."""
    buffer = np.empty(min(TILE, len(units)) ** 2)
    for rows, columns in pair_tiles(len(units), TILE):
        shape = rows.stop - rows.start, columns.stop - columns.start
        cosines = buffer[: shape[0] * shape[1]].reshape(shape)
        cosines = product(units[rows], units[columns].T, out=cosines)
        yield _Tile(rows, columns, cosines, _NONE, _NOTHING)


def _single_tiles(units: Floats, in_order: InOrder) -> Iterator[_Tile]:
    """Tiles in float32, but for the rows that have another near."""
    factors, side = units.astype(np.float32), TILE * _SINGLE_TILE
    buffer, worth = np.empty(min(side, len(units)) ** 2, np.float32), True
    for rows, columns in pair_tiles(len(units), side):
        shape = rows.stop - rows.start, columns.stop - columns.start
        cosines = buffer[: shape[0] * shape[1]].reshape(shape)
        again, largest = np.arange(shape[0]), None
        if worth:
            cosines = product(factors[rows], factors[columns].T, out=cosines)
            if rows == columns:
                np.fill_diagonal(cosines, -np.inf)
            largest = np.concatenate(list(in_order(_largest_by_row, row_bands(cosines))))
            again = np.flatnonzero(largest > 1 - _NEAR)
            worth = 2 * len(again) < shape[0]  # else the next tiles are in float64 at once
        exact = product(units[rows][again], units[columns].T)
        yield _Tile(rows, columns, cosines, again, exact, largest)


def row_bands(values: Reals) -> list[Reals]:
    """Cut a matrix into the rows that a thread takes at a time.

    Examples
    --------
    >>> [len(band) for band in row_bands(np.zeros((600, 2)))]
    [256, 256, 88]
    """
    return [values[start : start + _BAND] for start in range(0, len(values), _BAND)]


def _largest_by_row(cosines: Reals) -> Reals:
    return np.asarray(cosines.max(axis=1))


def in_single(units: Floats) -> bool:
    """Return whether float32 has the digits for the cosines of these unit rows, and they are worth it."""
    count, width = units.shape
    if count < _MANY or count <= 2 * width:
        return False
    mean = units.mean(axis=0)
    return float(mean @ mean) <= 0.5


class Observer(Protocol):
    """What adds up something over the pairs; it leaves the cosines of a strip as they are."""

    def empty(self) -> Self:
        """Return one that has seen nothing yet; in part of what this one has, it may look for more only."""

    def add(self, strip: Strip) -> None:
        """Take in one strip."""

    def merge(self, part: Self) -> None:
        """Take in what another has added up of the pairs that come next."""


def observe(units: Floats, observers: Sequence[Observer]) -> None:
    """Hand every pair of unit rows to every observer, bands of a tile at a time in threads."""
    with threads() as in_order:
        tiles = _single_tiles(units, in_order) if in_single(units) else _tiles(units)
        _observe(tiles, observers, in_order)


def _observe(tiles: Iterable[_Tile], observers: Sequence[Observer], in_order: InOrder) -> None:
    buffers = Buffers()
    for tile in tiles:
        starts = [observer.empty() for observer in observers]

        def of_band(
            band: slice, tile: _Tile = tile, starts: list[Observer] = starts
        ) -> list[Observer]:
            parts = [start.empty() for start in starts]
            for strip in tile.strips(band, buffers):
                for part in parts:
                    part.add(strip)
            return parts

        for parts in in_order(of_band, tile.bands()):
            for observer, part in zip(observers, parts, strict=True):
                observer.merge(part)


def _observe_known(cosines: Floats, observers: Sequence[Observer]) -> None:
    """Hand all pairs on as one tile."""
    every = slice(0, len(cosines))
    with threads() as in_order:
        _observe([_Tile(every, every, cosines, _NONE, _NOTHING)], observers, in_order)


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
    _observe_known(cosines, [spread])
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
    >>> from collapsemeter.metrics.frames import simplex_etf
    >>> statistics = pair_statistics(simplex_etf(4, 3))
    >>> statistics.worst_cosine.round(12)
    array([-0.33333333, -0.33333333, -0.33333333, -0.33333333])
    >>> int(statistics.histogram[33]), int(statistics.histogram.sum())  # all pairs near -1/3
    (6, 6)
    """
    spread, histogram = CosineSpread(len(units)), Histogram()
    nearest, logs = Nearest(len(units)), LogDistances(units, resolution)
    observers: list[Observer] = [spread, histogram, nearest, logs, *beside]
    if cosines is not None:
        _observe_known(cosines, observers)
    else:
        observe(units, observers)
        if in_single(units):
            nearest.settle(units, 1 - _NEAR)
    return PairStatistics(
        cos_std=spread.cos_std,
        cos_deviation=spread.cos_deviation,
        log_mean=logs.mean,
        log_variance=logs.variance,
        worst_cosine=nearest.cosines,
        nearest=nearest.rows,
        histogram=histogram.counts,
    )
