"""Pairs of classes: one pass over tiles of their cosines, in bounded memory.

A tile comes of one matrix product and is handed on in strips that stay in a core's cache; what is
asked of the pairs adds up strip by strip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .frames import EPS64, Floats, row_norms

TILE = 2048  # classes a side: a tile of pairs takes 32 MB
COSINE_BINS = 100  # of equal width over [-1, 1]
_STRIP = 2**15  # entries that are worked on at a time: 256 kB
_CANCELLED = 1e-6  # where 1 - cos is below, the distance is taken from the difference of the rows
_AT_CENTRE = 1e-30  # norms below this share of the largest are nothing beside it

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
    """

    def __init__(self, rows: slice, columns: slice, cosines: Floats, diagonal: bool) -> None:
        self.rows, self.columns, self.cosines, self.diagonal = rows, columns, cosines, diagonal
        if diagonal:
            own = np.arange(len(cosines))
            cosines[own, own + rows.start - columns.start] = -np.inf

    def pairs(self, values: Floats) -> Floats:
        """Return the values of the pairs a < b as a vector: a view, or a copy on the diagonal."""
        if not self.diagonal:
            return values.reshape(-1)
        first = np.arange(self.rows.start, self.rows.stop)
        upper: Floats = values[np.arange(self.columns.start, self.columns.stop) > first[:, None]]
        return upper

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
    buffer = np.empty(min(TILE, len(units)) ** 2)
    for a, b in pair_tiles(len(units)):
        height, width = a.stop - a.start, b.stop - b.start
        tile = buffer[: height * width].reshape(height, width)
        np.matmul(units[a], units[b].T, out=tile)
        step = max(1, _STRIP // width)
        for start in range(0, height, step):
            rows = slice(a.start + start, a.start + min(start + step, height))
            yield Strip(rows, b, tile[start : start + step], a == b)


class Observer(Protocol):
    """What adds up something over the strips; it leaves their cosines as they are."""

    def add(self, strip: Strip) -> None:
        """Take in one strip."""


class _Scratch:
    """Memory for values of a strip, used again for the next."""

    def __init__(self) -> None:
        self._buffer = np.empty(0)

    def like(self, values: Floats) -> Floats:
        if self._buffer.size < values.size:
            self._buffer = np.empty(values.size)
        return self._buffer[: values.size].reshape(values.shape)


class _Running:
    """Mean and squared deviations of values that arrive part by part (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self.deviation = 0, 0.0, 0.0

    def add(self, values: Floats) -> None:
        """Take in a vector; its memory is used and what it holds is lost."""
        if not values.size:
            return
        mean = float(values.mean())
        values -= mean
        deviation = float(values @ values)
        total = self.count + values.size
        delta = mean - self.mean
        self.deviation += deviation + delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total

    @property
    def variance(self) -> float:
        return self.deviation / self.count


class CosineSpread:
    r"""Spread of the cosines over pairs, and their distance from those of a simplex ETF.

    Parameters
    ----------
    count : int
        Rows of the frame, C.
    """

    def __init__(self, count: int) -> None:
        self._simplex = 1.0 / (count - 1)
        self._excess, self._deviation = _Running(), 0.0
        self._scratch, self._absolute = _Scratch(), _Scratch()

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        cosines = strip.pairs(strip.cosines)
        excess = np.add(cosines, self._simplex, out=self._scratch.like(cosines))
        self._deviation += float(np.abs(excess, out=self._absolute.like(excess)).sum())
        self._excess.add(excess)

    @property
    def cos_std(self) -> float:
        """Population standard deviation of the cosines."""
        return math.sqrt(self._excess.variance)

    @property
    def cos_deviation(self) -> float:
        r"""Mean of :math:`|\cos + 1/(C-1)|`."""
        return self._deviation / self._excess.count


class _Histogram:
    """How many cosines are in which bin."""

    def __init__(self) -> None:
        self._counts = np.zeros(COSINE_BINS + 1, np.int64)
        self._scratch = _Scratch()

    def add(self, strip: Strip) -> None:
        cosines = strip.pairs(strip.cosines)
        bins = np.multiply(cosines, COSINE_BINS / 2, out=self._scratch.like(cosines))
        bins += COSINE_BINS / 2
        # Round-off may put the cosine of parallel rows just outside: below zero it is cut to zero.
        self._counts += np.bincount(bins.astype(np.intp), minlength=COSINE_BINS + 1)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return np.append(self._counts[:-2], self._counts[-2:].sum())


class _Nearest:
    """The largest cosine of each row to another, and to which: the first of several."""

    def __init__(self, count: int) -> None:
        self.cosines = np.full(count, -np.inf)
        self.rows = np.full(count, -1, np.int64)

    def add(self, strip: Strip) -> None:
        rows, columns, cosines = strip.rows, strip.columns, strip.cosines
        self._nearer(rows, columns, strip.largest_by_row, cosines)
        self._nearer(columns, rows, cosines.max(axis=0), cosines.T)

    def _nearer(self, rows: slice, others: slice, largest: Floats, cosines: Floats) -> None:
        nearer = np.flatnonzero(largest > self.cosines[rows])
        self.cosines[rows][nearer] = largest[nearer]
        self.rows[rows][nearer] = cosines[nearer].argmax(axis=1) + others.start


class _LogDistances:
    """Logarithms of the squared distances of unit rows."""

    def __init__(self, units: Floats, resolution: float) -> None:
        self._units, self._least = units, resolution**2
        self._logs, self._scratch = _Running(), _Scratch()
        self._coincident = False

    def add(self, strip: Strip) -> None:
        if self._coincident:
            return
        squares = np.multiply(strip.cosines, -2.0, out=self._scratch.like(strip.cosines))
        squares += 2.0
        least = 2.0 - 2.0 * strip.largest
        if len(strip.near[0]):
            squares[strip.near] = strip.near_distances(self._units)
            least = float(squares.min())
        self._coincident = not least > self._least
        if not self._coincident:
            logs = strip.pairs(squares)
            self._logs.add(np.log(logs, out=logs))

    @property
    def mean(self) -> float:
        return math.inf if self._coincident else -0.5 * self._logs.mean

    @property
    def variance(self) -> float:
        return math.inf if self._coincident else 0.25 * self._logs.variance


class VarianceRatio:
    r"""Mean over pairs of :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)`, from the cosines of the rows of M.

    With n the norms, :math:`|\mu_a-\mu_b|^2 = 2 n_a n_b\,(\tfrac12(n_a/n_b + n_b/n_a) - \cos)`: a
    product of two columns, and the sum of its inverses against the variances is another.

    Parameters
    ----------
    means : (C, d) float64
        Centred.
    variances : (C,) float64
    resolution : float
        Distance up to which two means are the same point.
    """

    def __init__(self, means: Floats, variances: Floats, resolution: float) -> None:
        norms = row_norms(means)
        self._means, self._unit = means, float(norms.max())  # lengths are in that unit
        self._norms = np.maximum(norms / self._unit, _AT_CENTRE)
        self._least = (resolution / self._unit) ** 2
        by_norm = np.stack([np.ones_like(norms), variances / self._unit**2], axis=1)
        self._by_norm = by_norm / self._norms[:, None]
        self._total, self._scratch = 0.0, _Scratch()
        self._coincident = False

    def directions(self) -> Floats:
        """Return the means at unit length, (C, d); about zero where one is the centre."""
        return self._means / (self._unit * self._norms)[:, None]

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        if self._coincident:
            return
        a, b = self._norms[strip.rows], self._norms[strip.columns]
        halves = self._scratch.like(strip.cosines)
        np.matmul(np.stack([a, 1.0 / a], axis=1), np.stack([0.5 / b, 0.5 * b]), out=halves)
        halves -= strip.cosines
        if len(strip.near[0]):
            i, j = strip.near
            squares = strip.near_distances(self._means) / self._unit**2
            halves[i, j] = squares / (2.0 * a[i] * b[j])
        self._coincident = not self._apart(halves, a, b, strip)
        if self._coincident:
            return
        inverse = np.reciprocal(halves, out=halves)
        sums = self._by_norm[strip.rows].T @ (inverse @ self._by_norm[strip.columns])
        # On the diagonal each pair stands twice.
        self._total += float(sums[0, 1] + sums[1, 0]) / (8.0 if strip.diagonal else 4.0)

    def _apart(self, halves: Floats, a: Floats, b: Floats, strip: Strip) -> bool:
        # None is nearer than the angle alone would have them.
        least = 2.0 * (1.0 - strip.largest) * float(a.min() * b.min())
        if not len(strip.near[0]) and least > self._least:
            return True
        return bool((2.0 * halves * a[:, None] * b > self._least).all())

    @property
    def mean(self) -> float:
        """The ratio; infinite where two means are the same point."""
        count = len(self._norms)
        return math.inf if self._coincident else 2.0 * self._total / (count * (count - 1))


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


def observe(units: Floats, observers: Sequence[Observer]) -> None:
    """Hand every strip to every observer."""
    for strip in strips(units):
        for observer in observers:
            observer.add(strip)


def pair_statistics(
    units: Floats, resolution: float = 16 * EPS64, beside: Sequence[Observer] = ()
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
    spread, histogram = CosineSpread(len(units)), _Histogram()
    nearest, logs = _Nearest(len(units)), _LogDistances(units, resolution)
    observe(units, [spread, histogram, nearest, logs, *beside])
    return PairStatistics(
        cos_std=spread.cos_std,
        cos_deviation=spread.cos_deviation,
        log_mean=logs.mean,
        log_variance=logs.variance,
        worst_cosine=nearest.cosines,
        nearest=nearest.rows,
        histogram=histogram.counts,
    )
