r"""Class-shifted sums on the host: the sums of `sums`, for rows that arrive in NumPy.

The generic update touches every class in every batch and makes a dozen copies of the rows. Here rows are
taken in the order of their classes, only classes that are present are touched, and all passes, the
matrix product too, go over as many rows as a core's cache holds, so that a pass over saved activations
costs little more than that product, with 50,000 classes too.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from .linalg import add_product
from .moments import ClassMoments, Phase
from .sampling import low_32_bits
from .sketch import SKETCH_ROWS, row_hashes
from .sums import IGNORE_INDEX, MIXED, UNLABELLED, ScatterKind, init

SORTED_ENTRIES = 2**24  # taken in the order of classes: of a thousand, a tile meets a few dozen
TILE_ENTRIES = 2**17  # 1 MB of residuals, which stays in a core's cache up to the product
MIN_TILE = 256  # rows of a product, whose d x d entries are added up for every tile
SHIFT_ROWS = 4  # the mean of so many is off by half of the spread: near, as a shift must be
LONG_RUN = 2**13  # entries of a class, on average, that are summed by themselves

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Accumulator:
    """The sums of one layer, in float64, updated in place.

    Parameters
    ----------
    num_classes, width : int
        C and d.
    kind : {"class", "pooled", "sketch", "trace"}
        Which scatter is kept.
    ignore_index : int
        Label of rows to leave out; they are counted.
    propagate : bool
        Count a row that holds NaN or Inf and let its class become NaN, instead of leaving it out.
    sketch_rows, seed : int
        Where a sketch is kept: k, and what it is hashed with.

    Examples
    --------
    >>> sums = Accumulator(num_classes=2, width=3, kind="pooled")
    >>> sums.add(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    >>> sums.moments("float32", "frozen-eval").counts
    array([1, 2])
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        kind: ScatterKind,
        *,
        ignore_index: int = IGNORE_INDEX,
        propagate: bool = False,
        sketch_rows: int = SKETCH_ROWS,
        seed: int = 0,
    ) -> None:
        self.sums = init(num_classes, width, kind, sketch_rows=sketch_rows)
        self.seed = seed
        self._next_row = 0
        self.ignore_index = ignore_index
        self.propagate = propagate
        self._by_class = kind == "class"
        least = 1 if self.sums.scatter is None else MIN_TILE
        self._buffer = np.empty((max(least, TILE_ENTRIES // max(width, 1)), width))

    def add(self, rows: npt.NDArray[Any], labels: Ints) -> None:
        """Add rows of any float dtype.

        Parameters
        ----------
        rows : (N, d) array
        labels : (N,) int64 array
            0..C-1, ``ignore_index``, or the code of a row that names no single class, as
            `collapsemeter.stats.labels.class_labels` returns them.
        """
        most = max(len(self._buffer), SORTED_ENTRIES // max(rows.shape[1], 1))
        for part in _parts(len(rows), most):
            with np.errstate(over="ignore", invalid="ignore"):  # squares beyond 1e308 read Inf
                self._add_sorted(rows[part], labels[part])

    def _add_sorted(self, rows: npt.NDArray[Any], labels: Ints) -> None:
        used = np.flatnonzero((labels >= 0) & (labels != self.ignore_index))
        if len(used) < len(labels):
            self.sums.ignored += np.count_nonzero(labels == self.ignore_index)
            self.sums.unlabelled += np.count_nonzero(labels == UNLABELLED)
            self.sums.mixed += np.count_nonzero(labels == MIXED)
        order = np.argsort(labels[used], kind="stable")
        numbers, self._next_row = self._next_row + order, self._next_row + len(used)
        places = used[order]
        labels = labels[places]
        self._set_shifts(rows, places, labels)
        for part in _parts(len(places), len(self._buffer)):
            tile = np.take(rows, places[part], axis=0)  # faster than by indexing
            self._add_tile(tile, labels[part], numbers[part])

    def _set_shifts(self, rows: npt.NDArray[Any], places: Ints, labels: Ints) -> None:
        """Give every new class the mean of its first rows, taken as differences from the very first."""
        sums = self.sums
        new = np.flatnonzero(sums.counts[labels] == 0)
        first = _first_of_each(new, labels)
        if not _finite(rows[places[first]]).all():
            first = _first_of_each(new[_finite(rows[places[new]])], labels)
        places, labels = places[first], labels[first]
        runs = _Runs(labels)
        sums.shift[runs.present] = widened(rows[places[runs.starts]])
        for part in _parts(len(first), len(self._buffer)):  # summed where their sums are still 0
            residuals = self._residuals(rows[places[part]], labels[part])
            _Runs(labels[part]).add(sums.sums, residuals)
        sums.shift[runs.present] += sums.sums[runs.present] / runs.counts[:, None]
        sums.sums[runs.present] = 0

    def _residuals(self, rows: npt.NDArray[Any], labels: Ints) -> Floats:
        """Return the rows about their class's shift, until the next call."""
        residuals = self._buffer[: len(rows)]
        np.take(self.sums.shift, labels, axis=0, out=residuals, mode="clip")
        np.subtract(widened(rows), residuals, out=residuals)
        return residuals

    def _add_tile(self, rows: npt.NDArray[Any], labels: Ints, numbers: Ints) -> None:
        sums = self.sums
        residuals = self._residuals(rows, labels)
        norms = np.vecdot(residuals, residuals)
        counted: npt.NDArray[np.bool_] = np.isfinite(norms)
        if not counted.all():  # a value is not finite, or only its square: look closer
            counted = _finite(rows)
            residuals[~counted] = 0
            norms[~counted] = 0
        runs = _Runs(labels)
        sums.counts[runs.present] += np.add.reduceat(counted, runs.starts, dtype=np.int64)
        sums.squares[runs.present] += np.add.reduceat(norms, runs.starts)
        runs.add(sums.sums, residuals)
        if not counted.all():
            stray = labels[~counted]
            sums.nonfinite += np.int64(len(stray))
            if self.propagate:
                sums.counts += np.bincount(stray, minlength=len(sums.counts))
                sums.sums[stray] = np.nan
                sums.squares[stray] = np.nan
        if sums.sketch is not None:
            self._sketch(residuals[counted], labels[counted], numbers[counted])
        elif sums.scatter is not None and self._by_class:
            for label, part in zip(runs.present, runs.parts(), strict=True):
                add_product(sums.scatter[label], residuals[part])
        elif sums.scatter is not None:
            add_product(sums.scatter, residuals)

    def _sketch(self, residuals: Floats, labels: Ints, numbers: Ints) -> None:
        """Add rows of these numbers to the sketch: only to the buckets they meet."""
        sketch, totals = self.sums.sketch, self.sums.signs
        assert sketch is not None
        assert totals is not None
        buckets, negative = row_hashes(numbers, len(sketch), self.seed, low_32_bits)
        signs = np.where(negative, -1.0, 1.0)
        order = np.argsort(buckets, kind="stable")
        _Runs(buckets[order]).add(sketch, residuals, order, signs[order])
        np.add.at(totals, (buckets, labels), signs)

    def moments(
        self, feature_dtype: str, phase: Phase, shards: tuple[str, ...] = ()
    ) -> ClassMoments:
        """Finalise; rows may still be added afterwards."""
        with np.errstate(over="ignore", invalid="ignore"):
            return ClassMoments.from_sums(self.sums, feature_dtype, phase, shards, self.seed)


def widened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bfloat16 and the like, which NumPy does not compute with by itself, as float32: exactly.

    Examples
    --------
    >>> widened(np.ones(1, np.float16)).dtype
    dtype('float16')
    """
    # By type: a float64 whose byte order is spelled out, as a file's is, is not "built in" to NumPy.
    numpys = issubclass(values.dtype.type, np.floating)
    return values if numpys else values.astype(np.float32)


def _parts(count: int, most: int) -> list[slice]:
    """Cut so many rows into parts of one size: of few rows a product is slow."""
    parts = -(-count // most)
    return [slice(count * i // parts, count * (i + 1) // parts) for i in range(parts)]


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N, d) -> (N,): no NaN or Inf in the row."""
    found: npt.NDArray[np.bool_] = np.isfinite(widened(rows)).all(axis=1)
    return found


def _first_of_each(places: Ints, labels: Ints) -> Ints:
    """Return the first `SHIFT_ROWS` of the places of each class; labels are sorted."""
    of = labels[places]
    return places[np.arange(len(of)) - np.searchsorted(of, of) < SHIFT_ROWS]


class _Runs:
    """Runs of equal labels: where each starts, of which class it is, and how long."""

    def __init__(self, labels: Ints) -> None:
        starts = np.ones(len(labels), bool)
        np.not_equal(labels[1:], labels[:-1], out=starts[1:])
        self.starts = np.flatnonzero(starts)
        self._bounds = np.append(self.starts, len(labels))
        self.present = labels[self.starts]
        self.counts = self._bounds[1:] - self._bounds[:-1]

    def parts(self) -> list[slice]:
        """Where each run is."""
        return [slice(a, b) for a, b in itertools.pairwise(self._bounds.tolist())]

    def add(
        self,
        total: Floats,
        rows: Floats,
        order: Ints | None = None,
        weights: Floats | None = None,
    ) -> None:
        """Add to each class's ``total`` the sum of its rows: of ``rows``, or of their weighted order."""
        length = int(self._bounds[-1])
        entries = rows.shape[1] * length
        # Not by BLAS: NumPy's and SciPy's have threads of their own, which wait for work by spinning, and
        # those of one would take the cores from the product that the other computes.
        if order is None and LONG_RUN * len(self.present) <= entries:
            for label, part in zip(self.present.tolist(), self.parts(), strict=True):
                total[label] += rows[part].sum(axis=0)
            return
        from scipy.sparse import csr_array  # a tenth of a second to import

        values = np.ones(length) if weights is None else weights
        order = np.arange(length) if order is None else order
        indicator = csr_array((values, order, self._bounds), (len(self.present), length))
        total[self.present] += indicator @ rows
