r"""Class-shifted sums on the host: the sums of `sums`, for rows that arrive in NumPy.

The generic update touches every class in every batch and makes a dozen copies of the rows. Here only
classes that are present are touched and buffers are used again, so that a pass over saved activations
costs little more than its one matrix product, with 50,000 classes too.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from .moments import ClassMoments, Phase
from .sampling import low_32_bits
from .sketch import SKETCH_ROWS, row_hashes
from .sums import IGNORE_INDEX, ScatterKind, init

BLOCK_ENTRIES = 2**20  # 8 MB of residuals at a time
MIN_BLOCK = 64  # rows

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
        # A product of d x d entries is added up for every block: more rows than features are worth it.
        least = {"pooled": width, "class": width * num_classes}.get(kind, MIN_BLOCK)
        self._buffer = np.empty((max(least, BLOCK_ENTRIES // max(width, 1)), width))

    def add(self, rows: npt.NDArray[Any], labels: Ints) -> None:
        """Add rows of any float dtype.

        Parameters
        ----------
        rows : (N, d) array
        labels : (N,) int64 array
            0..C-1, or ``ignore_index``.
        """
        blocks = -(-len(rows) // len(self._buffer))
        for i in range(blocks):  # of one size: few rows are multiplied slowly
            part = slice(len(rows) * i // blocks, len(rows) * (i + 1) // blocks)
            with np.errstate(over="ignore", invalid="ignore"):  # squares beyond 1e308 read Inf
                self._add_block(widened(rows[part]), labels[part])

    def _add_block(self, rows: npt.NDArray[Any], labels: Ints) -> None:
        used = labels != self.ignore_index
        if not used.all():
            self.sums.ignored += np.int64(len(labels) - int(used.sum()))
            rows, labels = rows[used], labels[used]
        first, self._next_row = self._next_row, self._next_row + len(labels)
        if self._by_class:  # so that the rows of each class lie side by side
            order = np.argsort(labels, kind="stable")
            rows, labels = rows[order], labels[order]
        classes = _Classes(labels)
        if self.sums.counts[classes.present].all():
            residuals, norms = self._residuals(rows, labels)
            if np.isfinite(norms).all():
                self._count(classes, residuals, norms)
                self._sketch(residuals, labels, first + np.arange(len(labels)))
                return
        # A class is new, or a value is not finite (or its square): look closer.
        finite = np.isfinite(rows).all(axis=1)
        stray = labels[~finite]
        self.sums.nonfinite += np.int64(len(stray))
        rows, labels = rows[finite], labels[finite]
        classes = _Classes(labels)
        self._set_shifts(rows, classes)
        residuals, norms = self._residuals(rows, labels)
        self._count(classes, residuals, norms)
        self._sketch(residuals, labels, first + np.flatnonzero(finite))
        if self.propagate:
            self.sums.counts += np.bincount(stray, minlength=len(self.sums.counts))
            self.sums.sums[stray] = np.nan
            self.sums.squares[stray] = np.nan

    def _set_shifts(self, rows: npt.NDArray[Any], classes: _Classes) -> None:
        """Give every new class its mean in this block, taken as differences from its first row."""
        for label, members in zip(classes.present, classes.members(), strict=True):
            if self.sums.counts[label]:
                continue
            first = rows[members[0]].astype(np.float64)
            self.sums.shift[label] = first + (rows[members] - first).mean(axis=0)

    def _residuals(self, rows: npt.NDArray[Any], labels: Ints) -> tuple[Floats, Floats]:
        """Return the rows about their class's shift, and their squared norms."""
        residuals = self._buffer[: len(rows)]
        np.take(self.sums.shift, labels, axis=0, out=residuals, mode="clip")
        np.subtract(rows, residuals, out=residuals)
        return residuals, np.vecdot(residuals, residuals)

    def _count(self, classes: _Classes, residuals: Floats, norms: Floats) -> None:
        sums, present = self.sums, classes.present
        sums.counts[present] += classes.counts
        indicator = classes.indicator()
        sums.sums[present] += indicator @ residuals
        sums.squares[present] += indicator @ norms
        if sums.scatter is not None and self._by_class:
            for label, part in zip(present, classes.parts(), strict=True):
                _add_product(sums.scatter[label], residuals[part])
        elif sums.scatter is not None:
            _add_product(sums.scatter, residuals)

    def _sketch(self, residuals: Floats, labels: Ints, numbers: Ints) -> None:
        """Add rows of these numbers to the sketch, where there is one: only to the buckets they meet."""
        sketch, totals = self.sums.sketch, self.sums.signs
        if sketch is None or totals is None:
            return
        size = len(sketch)
        buckets, negative = row_hashes(numbers, size, self.seed, low_32_bits)
        signs = np.where(negative, -1.0, 1.0)
        met = _Classes(buckets)
        sketch[met.present] += met.indicator(signs) @ residuals
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


def _add_product(total: Floats, rows: Floats) -> None:
    """Add ``rows.T @ rows`` to the lower triangle of ``total``, in place: half the work, and no copy."""
    from scipy.linalg.blas import dsyrk  # a tenth of a second to import

    # To BLAS, which counts by columns, a transposed array of C order is one as it wants it.
    dsyrk(1.0, rows.T, beta=1.0, c=total.T, overwrite_c=True)


class _Classes:
    """Which classes are present in a block, and which rows are theirs."""

    def __init__(self, labels: Ints) -> None:
        self._order = np.argsort(labels, kind="stable")
        ordered = labels[self._order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self._bounds = np.append(starts, len(labels))
        self.present = ordered[starts]
        self.counts = np.diff(self._bounds)

    def parts(self) -> list[slice]:
        """Where the rows of each class are once they are sorted."""
        return [slice(a, b) for a, b in itertools.pairwise(self._bounds)]

    def members(self) -> list[Ints]:
        """Row numbers of each class."""
        return [self._order[part] for part in self.parts()]

    def indicator(self, weights: Floats | None = None) -> Any:
        """(P, B) sparse: 1, or its weight, where a row is of a class; its product sums over each class."""
        from scipy.sparse import csr_array  # a tenth of a second to import

        entries = np.ones(len(self._order)) if weights is None else weights[self._order]
        return csr_array(
            (entries, self._order, self._bounds), (len(self.present), len(self._order))
        )
