r"""The update on the device: class-shifted sums, written once for every framework.

Each class keeps a fixed shift :math:`k_c`, its mean in the first batch that shows it. With
:math:`r_i = h_i - k_{y_i}`, a batch adds

.. math:: n_c \mathrel{+}= |c|, \quad s_c \mathrel{+}= \sum_{i \in c} r_i, \quad
          G \mathrel{+}= R^\top R, \quad v_c \mathrel{+}= \sum_{i \in c} |r_i|^2 .

Residuals about a mean are small where features are collapsed, so float32 sums keep their digits;
raw second moments do not (Chan, Golub & LeVeque 1983). The update is one matrix product with static
shapes and no value is read back to the host. Everything that divides belongs to `moments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .sketch import SKETCH_ROWS

Array = Any  # an array of the framework that the namespace speaks for
ScatterKind = Literal["class", "pooled", "sketch", "trace"]
Nonfinite = Literal["skip", "raise", "propagate"]

IGNORE_INDEX = -100
CLASS_SCATTER_ENTRIES = 2**20  # up to 8 MB in float64: every class keeps its own scatter
POOLED_SCATTER_WIDTH = 4096  # 128 MB in float64: of wider layers a sketch is kept


class Namespace(Protocol):
    """What `update` needs of a framework. ``add*`` and ``assign`` may work in place."""

    def to_float(self, rows: Array) -> Array:
        """Cast to the dtype the sums are kept in, before any arithmetic."""

    def where(self, condition: Array, a: Array, b: Array | float) -> Array: ...
    def finite_rows(self, rows: Array) -> Array:
        """(B, d) -> (B,) bool: no NaN or Inf in the row."""

    def total(self, rows: Array) -> Array:
        """(B, d) -> (d,): sum of the rows."""

    def square_norms(self, rows: Array) -> Array:
        """(B, d) -> (B,): sum of squares of each row."""

    def class_counts(self, labels: Array, num_classes: int) -> Array:
        """(B,) labels in 0..C -> (C,) integers; label C is dropped."""

    def class_sum(self, rows: Array, labels: Array, num_classes: int) -> Array:
        """(B, d), (B,) labels in 0..C -> (C, d); rows labelled C are dropped."""

    def rows_of(self, table: Array, labels: Array) -> Array:
        """(C, d), (B,) labels in 0..C -> (B, d); what a row labelled C gets is not used."""

    def count(self, flags: Array) -> Array:
        """(B,) bool -> scalar integer."""

    def assign(self, old: Array, new: Array) -> Array: ...
    def add(self, total: Array, part: Array) -> Array: ...
    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        """(n, d) ``total`` plus the sums of the rows with each label; labels in 0..n-1."""

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        """(n, m) ``total`` plus each of (B,) values in its row and column."""

    def add_product(self, total: Array, rows: Array) -> Array:
        """``total + rows.T @ rows`` in full precision."""

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        """(C, d, d) ``total`` plus ``rows_c.T @ rows_c`` for every class c; label C is dropped."""


@dataclass(slots=True)
class Sums:
    """Class-shifted sums of one layer; arrays of the framework that filled them.

    Attributes
    ----------
    counts : (C,) integers
        Rows counted for each class.
    shift, sums : (C, d) float
        :math:`k_c`, and the sum of residuals about it.
    squares : (C,) float
        Sum of squared residual norms.
    scatter : (C, d, d) or (d, d) float, or None
        :math:`R^T R` of each class, of all rows, or not kept.
    ignored, nonfinite, invalid : scalar integers
        Rows left out: label ``ignore_index``; NaN or Inf in the row; any other label outside 0..C-1.
    sketch : (k, d) float, or None
        Sketch of the residuals, see `collapsemeter.sketch`.
    signs : (k, C) float, or None
        Sum of the signs of each class in each bucket.
    """

    counts: Array
    shift: Array
    sums: Array
    squares: Array
    scatter: Array | None
    ignored: Array
    nonfinite: Array
    invalid: Array
    sketch: Array | None = None
    signs: Array | None = None


def scatter_kind(num_classes: int, width: int, entries: int = CLASS_SCATTER_ENTRIES) -> ScatterKind:
    """Say which scatter a layer of this shape can afford.

    One scatter per class while that stays small, else one pooled scatter, else a sketch of it.

    Parameters
    ----------
    num_classes, width : int
        C and d.
    entries : int
        Up to which C d d every class keeps its own.

    Returns
    -------
    {"class", "pooled", "sketch"}

    Examples
    --------
    >>> scatter_kind(10, 64), scatter_kind(1000, 2048), scatter_kind(10, 65536)
    ('class', 'pooled', 'sketch')
    """
    if num_classes * width**2 <= entries:
        return "class"
    return "pooled" if width <= POOLED_SCATTER_WIDTH else "sketch"


def scatter_shape(kind: ScatterKind, num_classes: int, width: int) -> tuple[int, ...] | None:
    """Return the shape of a scatter of that kind; None where there is none.

    Examples
    --------
    >>> scatter_shape("pooled", 10, 64)
    (64, 64)
    """
    shapes: dict[str, tuple[int, ...] | None] = {
        "class": (num_classes, width, width),
        "pooled": (width, width),
        "sketch": None,
        "trace": None,
    }
    if kind not in shapes:
        raise ValueError(f"scatter={kind!r}: choose 'class', 'pooled', 'sketch' or 'trace'")
    return shapes[kind]


def sketch_shapes(
    kind: ScatterKind, num_classes: int, width: int, sketch_rows: int
) -> dict[str, tuple[int, int]]:
    """Return the shapes of `Sums.sketch` and `Sums.signs` by name; none where there is no sketch.

    Examples
    --------
    >>> sketch_shapes("sketch", 10, 65536, 512)
    {'sketch': (512, 65536), 'signs': (512, 10)}
    """
    if kind != "sketch":
        return {}
    return {"sketch": (sketch_rows, width), "signs": (sketch_rows, num_classes)}


def update(
    sums: Sums,
    rows: Array,
    labels: Array,
    xp: Namespace,
    *,
    ignore_index: int = IGNORE_INDEX,
    propagate: bool = False,
    hashes: tuple[Array, Array] | None = None,
) -> Sums:
    """Add a batch to the sums, without leaving the device.

    Parameters
    ----------
    sums : Sums
        The state; its arrays may be updated in place.
    rows : (B, d) float array of any precision
        Features, one row per label.
    labels : (B,) integer array
        Classes 0..C-1; rows labelled ``ignore_index`` are left out and counted, and so are rows with
        any other label (`Sums.invalid`) and rows that hold NaN or Inf (`Sums.nonfinite`).
    xp : Namespace
        The operations of the arrays' framework.
    propagate : bool
        Count a non-finite row and let it make its own class NaN, instead of leaving it out.
    hashes : pair of (B,) arrays
        Where a sketch is kept: the bucket of each row, and whether its sign is negative, of
        `collapsemeter.sketch.row_hashes`; of rows that are left out any.

    Returns
    -------
    Sums

    Raises
    ------
    ValueError
        If a sketch is kept and no hashes are given.

    Examples
    --------
    >>> import numpy as np
    >>> state = init(num_classes=2, width=3, kind="pooled")
    >>> state = update(state, np.eye(3), np.array([0, 1, 1]), NUMPY)
    >>> state.counts
    array([1, 2])
    """
    num_classes = sums.counts.shape[0]
    rows = xp.to_float(rows)
    ignored = labels == ignore_index  # it may be a class's number, such as a padding token's
    known = (labels >= 0) & (labels < num_classes) & ~ignored
    finite = xp.finite_rows(rows)
    used = known & finite
    # `where`, not a product with a mask: 0 * NaN is NaN.
    rows = xp.where(used[:, None], rows, 0.0)
    # Rows that are left out go to an extra class, so that shapes do not depend on the data.
    bins = xp.where(used, labels, num_classes)

    count = xp.class_counts(
        xp.where(known, labels, num_classes) if propagate else bins, num_classes
    )
    # Class means as differences from the batch's mean: a long sum of large numbers has few digits,
    # and a shift that is off by more than the spread of its class costs the scatter its own.
    kept = xp.count(used)
    origin = xp.total(rows) / xp.to_float(xp.where(kept > 0, kept, 1))
    total = xp.class_sum(xp.where(used[:, None], rows - origin, 0.0), bins, num_classes)
    first = (sums.counts == 0) & (count > 0)
    divisor = xp.to_float(xp.where(count > 0, count, 1))[:, None]
    shift = xp.assign(sums.shift, xp.where(first[:, None], origin + total / divisor, sums.shift))

    residuals = xp.where(used[:, None], rows - xp.rows_of(shift, bins), 0.0)
    residual_sum = xp.class_sum(residuals, bins, num_classes)
    squares = xp.class_sum(xp.square_norms(residuals)[:, None], bins, num_classes)[:, 0]
    if propagate:
        stray = xp.where(known & ~finite, labels, num_classes)
        poisoned = xp.class_counts(stray, num_classes) > 0
        residual_sum = xp.where(poisoned[:, None], float("nan"), residual_sum)
        squares = xp.where(poisoned, float("nan"), squares)
    scatter = sums.scatter
    if scatter is not None and len(scatter.shape) == 3:
        scatter = xp.add_class_products(scatter, residuals, bins)
    elif scatter is not None:
        scatter = xp.add_product(scatter, residuals)
    sketch, signs = sums.sketch, sums.signs
    if sketch is not None:
        if hashes is None:
            raise ValueError("these sums keep a sketch: pass hashes=row_hashes(numbers, k, seed)")
        buckets, negative = hashes
        sign = xp.where(used, 1.0 - 2.0 * xp.to_float(negative), 0.0)
        sketch = xp.add_class_sum(sketch, residuals * sign[:, None], buckets)
        signs = xp.add_entries(signs, sign, buckets, xp.where(used, labels, 0))
    return Sums(
        counts=xp.add(sums.counts, count),
        shift=shift,
        sums=xp.add(sums.sums, residual_sum),
        squares=xp.add(sums.squares, squares),
        scatter=scatter,
        ignored=xp.add(sums.ignored, xp.count(ignored)),
        nonfinite=xp.add(sums.nonfinite, xp.count(known & ~finite)),
        invalid=xp.add(sums.invalid, xp.count(~known & ~ignored)),
        sketch=sketch,
        signs=signs,
    )


class OneHotNumpy:
    """The generic form: every class operation as a product with the one-hot labels.

    It needs only comparison, matrix product, sum and ``where``, and is the oracle for the native
    forms. It costs C times a row, so a namespace overrides it where C is large.
    """

    def __init__(self, dtype: type[np.floating[Any]] = np.float64) -> None:
        self.dtype = dtype

    def to_float(self, rows: Array) -> Array:
        return np.asarray(rows).astype(self.dtype, copy=False)

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return np.where(condition, a, b)

    def finite_rows(self, rows: Array) -> Array:
        return np.isfinite(rows).all(axis=1)

    def total(self, rows: Array) -> Array:
        return rows.sum(axis=0)

    def square_norms(self, rows: Array) -> Array:
        return (rows * rows).sum(axis=1)

    def one_hot(self, labels: Array, num_classes: int) -> Array:
        return self.to_float(labels[:, None] == np.arange(num_classes))

    def class_counts(self, labels: Array, num_classes: int) -> Array:
        return (labels[:, None] == np.arange(num_classes)).sum(axis=0)

    def class_sum(self, rows: Array, labels: Array, num_classes: int) -> Array:
        return self.one_hot(labels, num_classes).T @ rows

    def rows_of(self, table: Array, labels: Array) -> Array:
        return self.one_hot(labels, table.shape[0]) @ table

    def count(self, flags: Array) -> Array:
        return flags.sum()

    def assign(self, old: Array, new: Array) -> Array:
        return new

    def add(self, total: Array, part: Array) -> Array:
        return total + part

    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        return total + self.class_sum(rows, labels, total.shape[0])

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        spread = self.one_hot(columns, total.shape[1]) * values[:, None]
        return total + self.one_hot(rows, total.shape[0]).T @ spread

    def add_product(self, total: Array, rows: Array) -> Array:
        return total + rows.T @ rows

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        num_classes, width, _ = total.shape
        spread = self.one_hot(labels, num_classes)[:, :, None] * rows[:, None, :]
        flat = spread.reshape(len(rows), num_classes * width)
        return total + (flat.T @ rows).reshape(num_classes, width, width)


class Numpy(OneHotNumpy):
    """NumPy's own class sums: sort the rows by class once, then add up runs."""

    def class_counts(self, labels: Array, num_classes: int) -> Array:
        return np.bincount(labels, minlength=num_classes + 1)[:num_classes]

    def class_sum(self, rows: Array, labels: Array, num_classes: int) -> Array:
        totals = np.zeros((num_classes + 1, rows.shape[1]), self.dtype)
        if len(labels):
            order = np.argsort(labels, kind="stable")
            present, starts = np.unique(labels[order], return_index=True)
            totals[present] = np.add.reduceat(rows[order], starts, axis=0)
        return totals[:num_classes]

    def rows_of(self, table: Array, labels: Array) -> Array:
        return table[np.minimum(labels, table.shape[0] - 1)]

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        total = total.copy()
        np.add.at(total, (rows, columns), values)
        return total

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        total = total.copy()
        for label in np.unique(labels[labels < total.shape[0]]):
            members = rows[labels == label]
            total[label] += members.T @ members
        return total


NUMPY = Numpy()


def init(
    num_classes: int,
    width: int,
    kind: ScatterKind,
    dtype: type[np.floating[Any]] = np.float64,
    sketch_rows: int = SKETCH_ROWS,
) -> Sums:
    """Return empty sums in NumPy.

    Parameters
    ----------
    num_classes, width : int
        C and d.
    kind : {"class", "pooled", "sketch", "trace"}
        Which scatter is kept.
    dtype : type
        What the sums are kept in: that of the namespace which updates them.
    sketch_rows : int
        k, where a sketch is kept.

    Examples
    --------
    >>> init(num_classes=2, width=3, kind="trace").scatter is None
    True
    """
    shape = scatter_shape(kind, num_classes, width)
    zero = np.int64(0)
    return Sums(
        counts=np.zeros(num_classes, np.int64),
        shift=np.zeros((num_classes, width), dtype),
        sums=np.zeros((num_classes, width), dtype),
        squares=np.zeros(num_classes, dtype),
        scatter=None if shape is None else np.zeros(shape, dtype),
        ignored=zero,
        nonfinite=zero,
        invalid=zero,
        **{
            name: np.zeros(shape, dtype)
            for name, shape in sketch_shapes(kind, num_classes, width, sketch_rows).items()
        },
    )
