"""The accumulator: class moments of rows that arrive in NumPy, batch by batch."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .fields import Phase
from .groups import GROUPS
from .host_sums import add_rows, block_rows_of, empty_sums
from .labels import check_nonfinite, feature_dtype_of, labelled_rows
from .moments import ClassMoments, check_phase
from .sums import EPS, IGNORE_INDEX, SKETCH_ROWS, Nonfinite, ScatterKind

PENDING_ENTRIES = 2**22  # of small batches that wait until they make a block


class Accumulator:
    """Class moments of a stream of batches in NumPy, summed in float64 and in place.

    Its memory does not grow with the rows. Small batches wait until they make a block, so that a stream costs little more
    than the product X^T X of its rows.

    Parameters
    ----------
    num_classes, width : int
        C and d.
    scatter : {"auto", "class", "pooled", "sketch", "trace"}
        What is kept of the within-class scatter, as for `ClassMoments.from_batch`.
    phase : {"frozen-eval", "live", "frozen-train", "reference"}
        See `ClassMoments`.
    ignore_index : int
        Label of the rows to leave out.
    nonfinite : {"skip", "raise", "propagate"}
        What to do with a row that holds NaN or Inf: leave it out and count it; refuse; or let its class become NaN.
    sketch_rows, seed : int
        Where a sketch is kept: k, and what it is hashed with, which must differ between streams that are merged.
    groups : int
        Groups of rows to keep for intervals, as for `ClassMoments.from_batch`.
    first_row : int
        The number of the first row that has a class: of a part of a data set, so that its groups are those of the whole.

    Raises
    ------
    ValueError
        If a parameter is none of these, or the sums would not fit any host.

    Examples
    --------
    >>> stream = Accumulator(num_classes=2, width=3)
    >>> for features, labels in [(np.eye(3), [0, 1, 1]), (np.ones((1, 3)), [0])]:
    ...     stream.update(features, labels)
    >>> stream.moments().counts
    array([2, 2])
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        scatter: ScatterKind | Literal["auto"] = "auto",
        *,
        phase: Phase = "frozen-eval",
        ignore_index: int = IGNORE_INDEX,
        nonfinite: Nonfinite = "skip",
        sketch_rows: int = SKETCH_ROWS,
        seed: int = 0,
        groups: int = GROUPS,
        first_row: int = 0,
    ) -> None:
        check_nonfinite(nonfinite)
        check_phase(phase)
        self._sums = empty_sums(num_classes, width, scatter, sketch_rows, groups)
        self.num_classes, self.width = num_classes, width
        self.phase, self.ignore_index, self.nonfinite = phase, ignore_index, nonfinite
        self.seed = seed
        self._feature_dtype = ""
        self._rows_numbered = first_row
        self._pending: npt.NDArray[Any] = np.empty((0, width))
        self._pending_labels = np.empty(0, np.int64)
        self._pending_rows = 0

    def update(self, features: npt.ArrayLike, labels: npt.ArrayLike) -> None:
        """Add a batch; one that is refused changes nothing.

        Parameters
        ----------
        features : (N, d) array_like of real numbers
        labels : (N,) or (N, 1) array_like of class numbers, or (N, C) one-hot
            Rows that name no single class are left out and counted.

        Raises
        ------
        ValueError
            If shapes or labels do not fit, or a row is not finite under ``nonfinite="raise"``.
        """
        rows, bins = labelled_rows(
            features,
            labels,
            self.num_classes,
            ignore_index=self.ignore_index,
            nonfinite=self.nonfinite,
        )
        if rows.shape[1] != self.width:
            raise ValueError(f"features have shape {rows.shape}: expected (N, {self.width})")
        names = self._feature_dtype, feature_dtype_of(features, rows)
        self._feature_dtype = max(names, key=lambda name: EPS.get(name, 0.0))
        capacity = max(block_rows_of(self.width), PENDING_ENTRIES // max(self.width, 1))
        large = len(rows) > capacity // 2
        if large or rows.dtype != self._pending.dtype or self._pending_rows + len(rows) > capacity:
            self.flush()
        if large:
            self._add(rows, bins)
            return
        if rows.dtype != self._pending.dtype or len(self._pending) < capacity:
            self._pending = np.empty((capacity, self.width), rows.dtype)
            self._pending_labels = np.empty(capacity, np.int64)
        part = slice(self._pending_rows, self._pending_rows + len(rows))
        self._pending[part], self._pending_labels[part] = rows, bins
        self._pending_rows += len(rows)

    def flush(self) -> None:
        """Add the rows that wait, as `moments` does."""
        count, self._pending_rows = self._pending_rows, 0
        self._add(self._pending[:count], self._pending_labels[:count])

    def _add(self, rows: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> None:
        self._rows_numbered += add_rows(
            self._sums,
            rows,
            labels,
            ignore_index=self.ignore_index,
            propagate=self.nonfinite == "propagate",
            seed=self.seed,
            first_row=self._rows_numbered,
        )

    def moments(
        self, *, shard: str | None = None, feature_dtype: str | None = None
    ) -> ClassMoments:
        """Return the moments of all rows so far; more may be added afterwards.

        Parameters
        ----------
        shard : str, optional
            A name for these rows; merging two states that share one is refused.
        feature_dtype : str, optional
            The dtype the network computed in, if it is not the coarsest that rows came in.
        """
        self.flush()
        dtype = feature_dtype or self._feature_dtype or "float64"
        shards = () if shard is None else (shard,)
        return ClassMoments.from_sums(self._sums, dtype, self.phase, shards, self.seed)
