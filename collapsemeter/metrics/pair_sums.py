"""What is summed over pairs of classes, of the cosines that `collapsemeter.metrics.pairs` hands on in strips.

Each sum starts `empty` for every part of the pairs, takes in its strips by `add`, and the parts by `merge`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.blas import product
from ..stats.linalg import Floats, row_norms

if TYPE_CHECKING:
    from .pairs import Strip

Reals = npt.NDArray[np.floating]  # float64, or float32 of very many rows
COSINE_BINS = 100  # of equal width over [-1, 1]
_CHUNK = 2**22  # entries of a matrix of rows that are worked on at a time: 32 MB
_PIECE = 1024  # terms of one inner product: of so few BLAS starts no threads, and rounding does not add up
_ALONE = 2**17  # entries of such a product, up to which BLAS starts no threads
_AT_CENTRE = 1e-30  # norms below this share of the largest are nothing beside it


def _inner(a: Reals, b: Reals) -> float:
    """Inner product of two vectors; those of their pieces are added in float64."""
    whole = a.size - a.size % _PIECE
    pieces = np.vecdot(a[:whole].reshape(-1, _PIECE), b[:whole].reshape(-1, _PIECE))
    return float(np.add.reduce(pieces, dtype=np.float64)) + float(np.vecdot(a[whole:], b[whole:]))


def _sum(values: Reals) -> float:
    """Sum of a vector, four times as fast as by ``np.add.reduce``."""
    whole = values.size - values.size % _PIECE
    ones = np.ones(_PIECE, values.dtype)
    pieces = np.vecdot(values[:whole].reshape(-1, _PIECE), ones)
    return float(np.add.reduce(pieces, dtype=np.float64)) + float(np.add.reduce(values[whole:]))


def _alone(values: Reals) -> Iterator[slice]:
    """Rows of which BLAS takes a product with two columns in the one thread that calls."""
    step = max(1, _ALONE // values.shape[1])
    for start in range(0, len(values), step):
        yield slice(start, start + step)


class _Running:
    """Mean and squared deviations of values that arrive part by part (Chan et al. 1983)."""

    def __init__(self, count: int = 0, mean: float = 0.0, deviation: float = 0.0) -> None:
        self.count, self.mean, self.deviation = count, mean, deviation

    def add(self, values: Reals, spare: Reals) -> None:
        """Take in a vector; ``spare`` is memory of its size, or the vector itself, and is lost."""
        if values.size:
            mean = _sum(values) / values.size
            off = np.subtract(values, mean, out=spare)
            self.merge(_Running(values.size, mean, _inner(off, off)))

    def merge(self, part: _Running) -> None:
        """Take in what was made of other values."""
        total = self.count + part.count
        if not total:
            return
        delta = part.mean - self.mean
        self.deviation += part.deviation + delta**2 * self.count * part.count / total
        self.mean += delta * part.count / total
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
        self._count, self._simplex = count, 1.0 / (count - 1)
        self._cosines, self._deviation = _Running(), 0.0

    def empty(self) -> CosineSpread:
        """Return one that has seen nothing yet."""
        return CosineSpread(self._count)

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        excess = np.add(strip.cosines, self._simplex, out=strip.scratch())
        self._deviation += _sum(strip.pairs(np.abs(excess, out=excess)))
        # Not of the excess: in float32 that is off by as much wherever it is of one power of two.
        cosines = strip.pairs(strip.cosines)
        self._cosines.add(cosines, excess.reshape(-1)[: cosines.size])

    def merge(self, part: CosineSpread) -> None:
        """Take in what another has added up of the pairs that come next."""
        self._deviation += part._deviation
        self._cosines.merge(part._cosines)

    @property
    def cos_std(self) -> float:
        """Population standard deviation of the cosines."""
        return math.sqrt(self._cosines.variance)

    @property
    def cos_deviation(self) -> float:
        r"""Mean of :math:`|\cos + 1/(C-1)|`."""
        return self._deviation / self._cosines.count


class Histogram:
    """How many cosines are in which bin."""

    def __init__(self) -> None:
        self._counts = np.zeros(COSINE_BINS + 1, np.int64)

    def empty(self) -> Histogram:
        """Return one that has seen nothing yet."""
        return Histogram()

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        bins = np.multiply(strip.cosines, COSINE_BINS / 2, out=strip.scratch())
        bins += COSINE_BINS / 2
        # Round-off may put the cosine of parallel rows just outside: below zero it is cut to zero.
        places = strip.pairs(bins).astype(np.uint8)
        # Two at a time, as one number of two bytes: that halves the time.
        even = places.size - places.size % 2
        both = np.bincount(places[:even].view(np.uint16), minlength=256 * (COSINE_BINS + 1))
        table = both.reshape(-1, 256)
        self._counts += table.sum(axis=1) + table.sum(axis=0)[: COSINE_BINS + 1]
        self._counts[places[even:]] += 1

    def merge(self, part: Histogram) -> None:
        """Take in what another has added up of the pairs that come next."""
        self._counts += part._counts

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Pairs in each bin; the last holds cosines of 1, too."""
        return np.append(self._counts[:-2], self._counts[-2:].sum())


class Nearest:
    """The largest cosine of each row to another, and to which: the first of several.

    Parameters
    ----------
    count : int
        Rows of the frame, C.
    """

    def __init__(self, count: int) -> None:
        self.cosines, self._second = np.full(count, -np.inf), np.full(count, -np.inf)
        self.rows = np.full(count, -1, np.int64)

    def empty(self) -> Nearest:
        """Return one that names only rows nearer than those that are known: of most rows there is none."""
        part = Nearest(len(self.rows))
        part.cosines[:] = self.cosines
        return part

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        rows, columns, cosines = strip.rows, strip.columns, strip.cosines
        self._nearer(rows, columns, strip.largest_by_row, cosines)
        if not strip.diagonal:
            self._nearer(columns, rows, cosines.max(axis=0), cosines.T)

    def _nearer(self, rows: slice, others: slice, largest: Reals, cosines: Reals) -> None:
        best, second = self.cosines[rows], self._second[rows]
        nearer = np.flatnonzero(largest > best)
        np.maximum(second, np.minimum(best, largest), out=second)
        if len(nearer):
            found = cosines[nearer]
            first = found.argmax(axis=1)
            found[np.arange(len(nearer)), first] = -np.inf
            second[nearer] = np.maximum(second[nearer], found.max(axis=1))
            best[nearer] = largest[nearer]
            self.rows[rows][nearer] = first + others.start

    def merge(self, part: Nearest) -> None:
        """Take in what another has found of the pairs that come next."""
        np.maximum(self._second, part._second, out=self._second)
        found = np.flatnonzero(part.rows >= 0)
        best, cosines = self.cosines[found], part.cosines[found]
        self._second[found] = np.maximum(self._second[found], np.minimum(best, cosines))
        nearer = found[cosines > best]
        self.cosines[nearer], self.rows[nearer] = part.cosines[nearer], part.rows[nearer]

    def settle(self, units: Floats, exact: float) -> None:
        """Do again in float64 what was found in float32: the cosines, and rows where another may be nearer.

        Parameters
        ----------
        units : (C, d) float64
        exact : float
            Cosines above were in float64.
        """
        count, width = units.shape
        # d products and the rounding of both factors, of unit rows; of either of two that are compared.
        error = (width + 4) * float(np.finfo(np.float32).eps)
        close = self.cosines - self._second <= error
        unsure = np.flatnonzero(close & (self.cosines <= exact + error))
        for part in _chunks(unsure, count):
            cosines = product(units[part], units.T)
            cosines[np.arange(len(part)), part] = -np.inf
            self.rows[part] = cosines.argmax(axis=1)
        for part in _chunks(np.arange(count), width):
            self.cosines[part] = np.vecdot(units[part], units[self.rows[part]])


def _chunks(places: npt.NDArray[np.int64], width: int) -> Iterator[npt.NDArray[np.int64]]:
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, len(places), step):
        yield places[start : start + step]


class LogDistances:
    """Logarithms of the distances of unit rows.

    Parameters
    ----------
    units : (C, d) float64
    resolution : float
        Distance up to which two rows are the same direction.
    """

    def __init__(self, units: Floats, resolution: float) -> None:
        self._units, self._least = units, resolution**2 / 2
        self._logs, self._coincident = _Running(), False

    def empty(self) -> LogDistances:
        """Return one that has seen nothing yet."""
        part = copy(self)
        part._logs, part._coincident = _Running(), False
        return part

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        if self._coincident:
            return
        halves = np.subtract(1.0, strip.cosines, out=strip.scratch())  # of the squared distances
        least = 1.0 - strip.largest
        if len(strip.near[0]):
            halves[strip.near] = strip.near_distances(self._units) / 2
            least = float(halves.min())
        self._coincident = not least > self._least
        if not self._coincident:
            logs = strip.pairs(halves)
            self._logs.add(np.log(logs, out=logs), spare=logs)

    def merge(self, part: LogDistances) -> None:
        """Take in what another has added up of the pairs that come next."""
        self._coincident |= part._coincident
        self._logs.merge(part._logs)

    @property
    def mean(self) -> float:
        r"""Mean of :math:`-\log|u_a - u_b|`; infinite where two rows are one direction."""
        return math.inf if self._coincident else -0.5 * (math.log(2.0) + self._logs.mean)

    @property
    def variance(self) -> float:
        """Population variance of the same."""
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
        self._left = np.stack([self._norms, 1.0 / self._norms], axis=1)
        self._right = np.stack([0.5 / self._norms, 0.5 * self._norms])
        by_norm = np.stack([np.ones_like(norms), variances / self._unit**2], axis=1)
        self._by_norm = by_norm / self._norms[:, None]
        self._total, self._coincident = 0.0, False

    def empty(self) -> VarianceRatio:
        """Return one that has seen nothing yet."""
        part = copy(self)
        part._total, part._coincident = 0.0, False
        return part

    def directions(self) -> Floats:
        """Return the means at unit length, (C, d); about zero where one is the centre."""
        return self._means / (self._unit * self._norms)[:, None]

    def add(self, strip: Strip) -> None:
        """Take in one strip."""
        if self._coincident:
            return
        a, b = self._norms[strip.rows], self._norms[strip.columns]
        halves = strip.scratch()
        left = self._left[strip.rows].astype(halves.dtype)
        right = self._right[:, strip.columns].astype(halves.dtype)
        for part in _alone(halves):
            np.matmul(left[part], right, out=halves[part])
        halves -= strip.cosines
        if len(strip.near[0]):
            i, j = strip.near
            squares = strip.near_distances(self._means) / self._unit**2
            halves[i, j] = squares / (2.0 * a[i] * b[j])
        self._coincident = not self._apart(halves, a, b, strip)
        if self._coincident:
            return
        inverse = np.reciprocal(halves, out=halves)
        by_norm = self._by_norm[strip.columns].astype(halves.dtype)
        by_row = np.concatenate([inverse[part] @ by_norm for part in _alone(inverse)])
        sums = self._by_norm[strip.rows].T @ by_row
        # On the diagonal each pair stands twice.
        self._total += float(sums[0, 1] + sums[1, 0]) / (8.0 if strip.diagonal else 4.0)

    def _apart(self, halves: Reals, a: Floats, b: Floats, strip: Strip) -> bool:
        # None is nearer than the angle alone would have them.
        least = 2.0 * (1.0 - strip.largest) * float(a.min() * b.min())
        if not len(strip.near[0]) and least > self._least:
            return True
        return bool((2.0 * halves * a[:, None] * b > self._least).all())

    def merge(self, part: VarianceRatio) -> None:
        """Take in what another has added up of the pairs that come next."""
        self._total += part._total
        self._coincident |= part._coincident

    @property
    def mean(self) -> float:
        """The ratio; infinite where two means are the same point."""
        count = len(self._norms)
        return math.inf if self._coincident else 2.0 * self._total / (count * (count - 1))
