"""Pairs of classes: one pass over tiles of their cosines, in bounded memory.

Cosines of very many rows are taken in float32, off by some 3e-7. Those of C > 2 d unit rows whose mean cosine is m <= 1/2
spread by (1 - m) / sqrt(2 d) at least (Welch 1974), far above that, and a mean over n pairs loses 3e-7 / sqrt(n). A tile
with a cosine above 1 - NEAR, and the largest cosine of each row, are taken again in float64.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..stats.linalg import EPS64, Floats, row_blocks, row_norms

Reals = npt.NDArray[np.floating]  # float64, or float32 of very many rows
Indices = npt.NDArray[np.int64]

COSINE_BINS = 100  # of equal width over [-1, 1]
EPS32 = float(np.finfo(np.float32).eps)
TILE = 512  # rows a side: a tile of their cosines stays in a cache
MANY = 4096  # rows, from which on their cosines may be in float32
NEAR = 0.05
_CANCELLED = 1e-6  # where 1 - cos is below, the distance is taken from the difference of the rows
_AT_CENTRE = 1e-30  # norms below this share of the largest are nothing beside it
_ENTRIES = 2**22  # of a product of some rows with all: 32 MB


class Cosines(NamedTuple):
    r"""Population standard deviation of the cosines, mean :math:`|\cos + 1/(C-1)|`, and the first of each row's largest."""

    cos_std: float
    cos_deviation: float
    worst_cosine: Floats
    nearest: Indices


class PairStatistics(NamedTuple):
    r"""Statistics over the pairs of rows of a frame.

    The logs are of :math:`-\log|u_a - u_b|`, infinite where two rows are one direction, ``variance_ratio`` of
    :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)`, infinite where two are one point. ``nearest`` is the first of the largest cosine.
    """

    cos_std: float
    cos_deviation: float
    log_mean: float
    log_variance: float
    variance_ratio: float
    worst_cosine: Floats
    nearest: Indices
    histogram: Indices


class Tile(NamedTuple):
    """Cosines of rows ``i`` with rows ``j``, and ``square``, of ``rows`` with ``columns``, -inf where a row meets itself."""

    rows: slice
    columns: slice
    square: Reals
    i: Indices
    j: Indices
    cosines: Reals


def tiles(units: Floats) -> Iterator[Tile]:
    """Cover every pair of unit rows once."""
    count, single = len(units), in_single(units)
    factors = units.astype(np.float32) if single else units
    parts = list(row_blocks(count, 1, TILE))
    done = again = 0
    for first, rows in enumerate(parts):
        yield _diagonal_tile(units, rows)
        i = np.arange(rows.start, rows.stop)[:, None]
        for columns in parts[first + 1 :]:
            square: Reals = factors[rows] @ factors[columns].T
            if single:
                done += 1
                if square.max() > 1 - NEAR:
                    again += 1
                    square = units[rows] @ units[columns].T
                    if 2 * again > done + 8:  # float32 saves nothing
                        single, factors = False, units
            j = np.arange(columns.start, columns.stop)[None]
            yield Tile(rows, columns, square, i, j, square)


def _diagonal_tile(units: Floats, rows: slice) -> Tile:
    square = units[rows] @ units[rows].T
    np.fill_diagonal(square, -np.inf)
    i, j = _upper(len(square))
    return Tile(rows, rows, square, i + rows.start, j + rows.start, square[i, j])


@functools.lru_cache(maxsize=2)
def _upper(count: int) -> tuple[Indices, Indices]:
    return np.triu_indices(count, 1)


def in_single(units: Floats) -> bool:
    """Return whether float32 has the digits for the cosines of these unit rows, and they are worth it."""
    count, width = units.shape
    if count < MANY or count <= 2 * width:
        return False
    mean = units.mean(axis=0)
    return float(mean @ mean) <= 0.5


def cosines_of(units: Floats) -> Cosines:
    """Return the statistics of the cosines over all pairs of unit rows, (C, d) with C >= 2."""
    spread, nearest = _Spread(len(units)), Largest(len(units))
    for tile in tiles(units):
        spread.add(tile.cosines)
        nearest.add_both(tile)
    if in_single(units):
        nearest.settle(units)
    return Cosines(*spread.result(), nearest.values, nearest.indices)


def pair_statistics(
    frame: Floats, variances: Floats, resolution: float, angle: float | None = None
) -> PairStatistics:
    """Return the statistics over all pairs of rows; up to ``resolution`` two are one point, up to ``angle`` one direction."""
    norms = row_norms(frame)
    scale = float(norms.max())
    lengths = np.maximum(norms / scale, _AT_CENTRE)
    units = frame / (scale * lengths)[:, None]
    spread, logs, nearest = _Spread(len(frame)), _Running(), Largest(len(frame))
    histogram = np.zeros(COSINE_BINS + 1, np.int64)
    largest = float(variances.max()) or 1.0
    ratios, closest, straightest = 0.0, math.inf, math.inf
    for tile in tiles(units):
        spread.add(tile.cosines)
        histogram += _histogram(tile.cosines)
        nearest.add_both(tile)
        halves, squares = _distances(tile, frame, units, lengths, scale)
        closest = min(closest, float(squares.min(initial=math.inf)))
        straightest = min(straightest, float(halves.min(initial=math.inf)))
        if straightest > 0:
            logs.add(np.log(halves))
        if closest > 0:
            shares = (variances / largest).astype(squares.dtype)
            ratios += float(((shares[tile.i] + shares[tile.j]) / squares).sum())
    if in_single(units):
        nearest.settle(units)
    least = 16 * EPS64 if angle is None else angle
    pairs = len(frame) * (len(frame) - 1) / 2
    one_direction, one_point = straightest <= least**2 / 2, closest <= (resolution / scale) ** 2
    return PairStatistics(
        *spread.result(),
        log_mean=math.inf if one_direction else -0.5 * (math.log(2.0) + logs.mean),
        log_variance=math.inf if one_direction else 0.25 * logs.variance,
        variance_ratio=math.inf if one_point else ratios * largest / scale**2 / (2 * pairs),
        worst_cosine=nearest.values,
        nearest=nearest.indices,
        histogram=np.append(histogram[:-2], histogram[-2:].sum()),
    )


def _histogram(cosines: Reals) -> Indices:
    # Round-off may put the cosine of parallel rows just outside: below zero it is cut to zero.
    bins = ((cosines + 1) * (COSINE_BINS / 2)).astype(np.uint8)
    return np.bincount(bins.reshape(-1), minlength=COSINE_BINS + 1)


def _distances(
    tile: Tile, frame: Floats, units: Floats, lengths: Floats, scale: float
) -> tuple[Reals, Reals]:
    r"""Half of :math:`|u_a - u_b|^2`, and :math:`|f_a - f_b|^2 = (n_a - n_b)^2 + n_a n_b |u_a - u_b|^2` in units of the scale."""
    norms = lengths.astype(tile.cosines.dtype)
    a, b = norms[tile.i], norms[tile.j]
    halves = 1.0 - tile.cosines
    squares = a - b
    squares *= squares
    squares += 2.0 * a * b * halves
    near = np.nonzero(halves < _CANCELLED)
    if len(near[0]):
        i, j = (np.broadcast_to(index, halves.shape)[near] for index in (tile.i, tile.j))
        halves[near] = _squared_distances(units, i, j) / 2
        squares[near] = _squared_distances(frame, i, j) / scale**2
    return halves, squares


def _squared_distances(frame: Floats, i: Indices, j: Indices) -> Floats:
    parts = row_blocks(len(i), frame.shape[1], _ENTRIES)
    return np.concatenate([((frame[i[part]] - frame[j[part]]) ** 2).sum(axis=1) for part in parts])


class _Running:
    """Mean and squared deviations of values that arrive part by part (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count, self.mean, self._deviation = 0, 0.0, 0.0

    def add(self, values: Reals) -> None:
        if not values.size:
            return
        mean = float(values.sum()) / values.size
        off = values - mean
        total, delta = self.count + values.size, mean - self.mean
        self._deviation += float(np.vecdot(off, off).sum(dtype=np.float64))
        self._deviation += delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total

    @property
    def variance(self) -> float:
        return self._deviation / self.count


class _Spread:
    """Spread of the cosines, and their distance from those of a simplex ETF."""

    def __init__(self, count: int) -> None:
        self._simplex, self._cosines, self._deviation = 1.0 / (count - 1), _Running(), 0.0

    def add(self, cosines: Reals) -> None:
        self._cosines.add(cosines)
        self._deviation += float(np.abs(cosines + self._simplex).sum())

    def result(self) -> tuple[float, float]:
        """Return the standard deviation, and that distance on average."""
        return math.sqrt(self._cosines.variance), self._deviation / self._cosines.count


class Largest:
    """The largest entry of each row of a product that arrives tile by tile: the first of several."""

    def __init__(self, count: int) -> None:
        self.values, self._second = np.full(count, -np.inf), np.full(count, -np.inf)
        self.indices = np.full(count, -1, np.int64)

    def add(self, rows: slice, columns: slice, products: Reals) -> None:
        """Take in one tile."""
        values, second, largest = self.values[rows], self._second[rows], products.max(axis=1)
        np.maximum(second, np.minimum(values, largest), out=second)
        (higher,) = np.nonzero(largest > values)
        if len(higher):
            part = np.array(products[higher])
            first = part.argmax(axis=1)
            part[np.arange(len(higher)), first] = -np.inf
            second[higher] = np.maximum(second[higher], part.max(axis=1))
            values[higher] = largest[higher]
            self.indices[rows][higher] = first + columns.start

    def add_both(self, tile: Tile) -> None:
        """Take in a tile and its transpose."""
        self.add(tile.rows, tile.columns, tile.square)
        if tile.rows != tile.columns:
            self.add(tile.columns, tile.rows, tile.square.T)

    def unsure(self, error: float) -> Indices:
        """Return the rows in which another entry may be the largest."""
        return np.flatnonzero(self.values - self._second <= error)

    def settle(self, units: Floats) -> None:
        """Do again in float64 what was found in float32 of unit rows' cosines to each other."""
        unsure = self.unsure(single_rounding(units))
        for block in row_blocks(len(unsure), len(units), _ENTRIES):
            part = unsure[block]
            cosines = units[part] @ units.T
            cosines[np.arange(len(part)), part] = -np.inf
            self.indices[part] = cosines.argmax(axis=1)
        for block in row_blocks(len(units), units.shape[1], _ENTRIES):
            self.values[block] = np.vecdot(units[block], units[self.indices[block]])


def closest_units(rows: Floats, units: Floats) -> Indices:
    """Return which unit row is closest to each of some others, (k,): in float32 first where both are many."""
    closest, unsure = np.empty(len(rows), np.int64), np.arange(len(rows))
    if min(len(rows), len(units)) >= MANY:
        # What all units have in common decides nothing; without it products are small, and so is their rounding.
        mean = units.mean(axis=0)
        factors, relative = rows.astype(np.float32), (units - mean).astype(np.float32)
        largest = Largest(len(rows))
        for part in row_blocks(len(rows), 1, TILE):
            for columns in row_blocks(len(units), 1, TILE):
                largest.add(part, columns, factors[part] @ relative[columns].T)
        closest, unsure = largest.indices, largest.unsure(single_rounding(relative))
    for block in row_blocks(len(unsure), len(units), _ENTRIES):
        closest[unsure[block]] = (rows[unsure[block]] @ units.T).argmax(axis=1)
    return closest


def single_rounding(units: Reals) -> float:
    """Bound what float32 takes from the difference of two products of unit rows with these: d terms, and both factors."""
    longest = float(np.sqrt(np.vecdot(units, units).max()))
    return longest * (int(units.shape[1]) + 4) * EPS32
