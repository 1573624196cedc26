"""Pairs of classes: cosines, distances and Gram matrices, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .frames import EPS64, Floats, simplex_gram

TILE = 2048  # classes a side: a tile of pairs takes 32 MB
COSINE_BINS = 100  # of equal width over [-1, 1]
_CANCELLED = 1e-6  # expanded squared distances below this share of the norms are done again


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


def upper_pairs(values: Floats, a: slice, b: slice) -> Floats:
    """Return the entries of a tile that are pairs a < b, as a vector."""
    if a == b:
        return values[np.triu_indices(values.shape[0], 1)]
    return values.ravel()


class _Running:
    """Mean and squared deviations of values that arrive tile by tile (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self.deviation = 0, 0.0, 0.0

    def add(self, values: Floats) -> None:
        if not values.size:
            return
        mean = float(values.mean())
        deviation = float(((values - mean) ** 2).sum())
        total = self.count + values.size
        delta = mean - self.mean
        self.deviation += deviation + delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total

    @property
    def variance(self) -> float:
        return self.deviation / self.count


def pair_statistics(units: Floats, resolution: float = 16 * EPS64) -> PairStatistics:
    r"""Statistics over all pairs of unit rows, in tiles of bounded memory.

    Parameters
    ----------
    units : (C, d) float64
        Rows of unit length, C >= 2.
    resolution : float
        Distance up to which two rows are the same direction: the round-off of the rows.

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
    count = len(units)
    cosines, logs = _Running(), _Running()
    deviation, coincident = 0.0, False
    worst = np.full(count, -np.inf)
    nearest = np.full(count, -1, np.int64)
    histogram = np.zeros(COSINE_BINS, np.int64)
    for a, b in pair_tiles(count):
        cos = units[a] @ units[b].T
        upper = upper_pairs(cos, a, b)
        cosines.add(upper)
        # Round-off may put the cosine of parallel rows just outside.
        histogram += np.histogram(upper.clip(-1, 1), COSINE_BINS, (-1, 1))[0]
        deviation += float(np.abs(upper + 1.0 / (count - 1)).sum())
        distances = upper_pairs(squared_distances(units[a], units[b], cos), a, b)
        apart = distances > resolution**2
        coincident |= not apart.all()
        logs.add(-0.5 * np.log(distances[apart]))
        if a == b:
            np.fill_diagonal(cos, -np.inf)
        _nearer(worst, nearest, a, b, cos)
        _nearer(worst, nearest, b, a, cos.T)
    return PairStatistics(
        cos_std=math.sqrt(cosines.variance),
        cos_deviation=deviation / cosines.count,
        log_mean=math.inf if coincident else logs.mean,
        log_variance=math.inf if coincident else logs.variance,
        worst_cosine=worst,
        nearest=nearest,
        histogram=histogram,
    )


def _nearer(
    worst: Floats, nearest: npt.NDArray[np.int64], rows: slice, others: slice, cos: Floats
) -> None:
    """Update the largest cosine of some rows, and whose it is, by those to other rows."""
    best = cos.argmax(axis=1)
    largest = cos[np.arange(len(best)), best]
    nearer = largest > worst[rows]
    worst[rows] = np.where(nearer, largest, worst[rows])
    nearest[rows] = np.where(nearer, best + others.start, nearest[rows])


def squared_distances(a: Floats, b: Floats, products: Floats | None = None) -> Floats:
    r"""Return :math:`|a_i - b_j|^2` by one matrix product, exact where that cancels.

    :math:`|a|^2 + |b|^2 - 2ab` loses every digit where the points nearly coincide; those entries are
    computed again from the differences. Rows should be centred: it does not undo an offset.

    Parameters
    ----------
    a, b : (m, d), (n, d) float64
    products : (m, n) float64, optional
        ``a @ b.T``, if it is at hand.

    Returns
    -------
    (m, n) float64

    Examples
    --------
    >>> near = squared_distances(np.array([[1.0, 0.0]]), np.array([[1.0, 1e-9]]))
    >>> bool(np.isclose(near[0, 0], 1e-18, rtol=1e-12, atol=0))
    True
    """
    if products is None:
        products = a @ b.T
    scale = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)
    distances: Floats = scale - 2.0 * products
    rows, columns = np.nonzero(distances < _CANCELLED * scale)
    step = max(1, TILE * TILE // max(a.shape[1], 1))
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        distances[i, j] = ((a[i] - b[j]) ** 2).sum(axis=1)
    return distances


def gram_distance(a: Floats, b: Floats, target: str) -> float:
    r"""Distance of the normalised product of two frames from that of a target frame.

    :math:`\big| AB^\top / |AB^\top| - T \big|` with T the simplex Gram matrix P, or
    :math:`I/\sqrt{C}`. Where C > d + 1 no C x C matrix is built:
    :math:`|AB^\top|^2 = \langle A^\top A, B^\top B\rangle`.

    Parameters
    ----------
    a, b : (C, d) float64
    target : {"simplex", "orthogonal"}

    Returns
    -------
    float
        Between 0 and 2; NaN if the product is zero.

    Examples
    --------
    >>> from collapsemeter.frames import simplex_etf
    >>> frame = simplex_etf(5, 8)
    >>> gram_distance(frame, frame, "simplex") < 1e-14
    True
    """
    count, width = a.shape
    # At a scale of 1 the products of small frames do not underflow.
    a, b = (frame / (np.abs(frame).max() or 1.0) for frame in (a, b))
    if count <= width + 1:
        product = a @ b.T
        norm = float(np.linalg.norm(product))
        goal = simplex_gram(count) if target == "simplex" else np.eye(count) / math.sqrt(count)
        return float(np.linalg.norm(product / norm - goal)) if norm > 0 else math.nan
    norm = math.sqrt(max(float(((a.T @ a) * (b.T @ b)).sum()), 0.0))
    inner = float((a * b).sum())
    if target == "simplex":
        inner = (inner - float(a.sum(axis=0) @ b.sum(axis=0)) / count) / math.sqrt(count - 1)
    else:
        inner /= math.sqrt(count)
    return math.sqrt(max(2.0 - 2.0 * inner / norm, 0.0)) if norm > 0 else math.nan
