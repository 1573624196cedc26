r"""The update on the device: class-shifted sums, written once for every framework.

Each class keeps a fixed shift :math:`k_c`, its mean in the first batch that shows it. With
:math:`r_i = h_i - k_{y_i}`, a batch adds

.. math:: n_c \mathrel{+}= |c|, \quad s_c \mathrel{+}= \sum_{i \in c} r_i, \quad
          G \mathrel{+}= R^\top R, \quad v_c \mathrel{+}= \sum_{i \in c} |r_i|^2 .

Residuals about a mean are small where features are collapsed, so float32 sums keep their digits;
raw second moments do not (Chan, Golub & LeVeque 1983). No pass is made over all classes, shapes are static, and no
value is read back from a device.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from .namespace import Array, Namespace

ScatterKind = Literal["class", "pooled", "sketch", "trace"]
Nonfinite = Literal["skip", "raise", "propagate"]

EPS: dict[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e5m2": 2.0**-2,
}

IGNORE_INDEX = -100
# Labels of rows that name no single class; within 32 bits, and no number that people use for something.
UNLABELLED = -(2**30)  # a one-hot row of zeros
MIXED = UNLABELLED - 1  # several classes, or parts of them
ABSENT = MIXED - 1  # no row at all: a place of a block that holds none
ARRAYS = ("counts", "means", "means_low", "traces", "scatter", "sketch", "signs")  # of moments
LEFT_OUT = ("ignored", "nonfinite", "unlabelled", "mixed")
COUNTERS = (*LEFT_OUT[:2], "invalid", *LEFT_OUT[2:])
INTEGERS = ("counts", "group_counts", *COUNTERS)  # what counts among the arrays of `Sums`
CLASS_SCATTER_ENTRIES = 2**20  # up to 8 MB in float64: every class keeps its own scatter
MOST_CLASSES = 2**20  # more is rather something else: an id, a hash, a number of rows
MOST_ENTRIES = 2**32  # of one array: 32 GiB in float64
HOST_CLASS_SCATTER_ENTRIES = 2**24  # 128 MB: the host affords more than a training step
SKETCH_ROWS = 512  # k: a standard error of about 6 % of one quadratic form, and less of a sum
POOLED_SCATTER_WIDTH = 4096  # 128 MB in float64: of wider layers a sketch is kept


@dataclass(slots=True)
class Sums:
    """Class-shifted sums of one layer; arrays of the framework that filled them.

    Attributes
    ----------
    counts : (C,) integers
        Rows counted for each class.
    shift : (C, d) float
        :math:`k_c`.
    sums : (C, d) or (C G, d) float
        The sum of residuals about it: of each class, or where groups are kept of each group of each class.
    squares : (C,) or (C G,) float
        Sum of squared residual norms, alike.
    scatter : (C, d, d) or (d, d) float, or None
        :math:`R^T R` of each class, of all rows, or not kept. Only the lower triangle counts.
    ignored, nonfinite, invalid, unlabelled, mixed : scalar integers
        Rows left out: label ``ignore_index``; NaN or Inf in the row; any other label outside 0..C-1;
        label `UNLABELLED`; label `MIXED`.
    sketch : (k, d) float, or None
        Sketch of the residuals, see `collapsemeter.stats.sketch`.
    signs : (k, C) float, or None
        Sum of the signs of each class in each bucket.
    group_counts : (C G,) integers, or None
        Rows of each group of each class, see `collapsemeter.stats.groups`; None without groups.
    """

    counts: Array
    shift: Array
    sums: Array
    squares: Array
    scatter: Array | None
    ignored: Array
    nonfinite: Array
    invalid: Array
    unlabelled: Array
    mixed: Array
    sketch: Array | None = None
    signs: Array | None = None
    group_counts: Array | None = None

    @property
    def groups(self) -> int:
        """G; 0 without groups."""
        if self.group_counts is None:
            return 0
        return int(self.group_counts.shape[0] // self.counts.shape[0])

    def by_class(self) -> Sums:
        """Return the sums of classes alone, in which groups are joined."""
        if self.group_counts is None:
            return self
        classes, width = self.shift.shape
        return replace(
            self,
            sums=self.sums.reshape(classes, -1, width).sum(axis=1),
            squares=self.squares.reshape(classes, -1).sum(axis=1),
            group_counts=None,
        )


def check_num_classes(num_classes: Any, least: int = 1) -> int:
    """Return a number of classes as int, before anything of that size is allocated."""
    number = check_whole("num_classes", num_classes)
    if number < least:
        words = {1: "one class", 2: "two classes"}[least]
        raise ValueError(f"num_classes={number}: there must be at least {words}")
    if number > MOST_CLASSES:
        raise ValueError(
            f"num_classes={number}: at most {MOST_CLASSES} classes are measured; pass the number of classes"
        )
    return number


def check_whole(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number as int; raise ValueError if it is none, or less than it may be."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} is not a whole number") from error
    if least is not None and number < least:
        raise ValueError(f"{name}={number}: pass {least} or more")
    return number


def scatter_kind(num_classes: int, width: int, entries: int = CLASS_SCATTER_ENTRIES) -> ScatterKind:
    """Return the finest scatter that a layer of this shape affords: of each class, pooled, or a sketch."""
    if num_classes * width**2 <= entries:
        return "class"
    return "pooled" if width <= POOLED_SCATTER_WIDTH else "sketch"


def scatter_shape(kind: ScatterKind, num_classes: int, width: int) -> tuple[int, ...] | None:
    """Return the shape of a scatter of that kind; None where there is none."""
    if kind not in get_args(ScatterKind):
        raise ValueError(f"scatter={kind!r}: choose 'class', 'pooled', 'sketch' or 'trace'")
    return {"class": (num_classes, width, width), "pooled": (width, width)}.get(kind)


def sketch_shapes(
    kind: ScatterKind, num_classes: int, width: int, sketch_rows: int
) -> dict[str, tuple[int, int]]:
    """Return the shapes of `Sums.sketch` and `Sums.signs` by name; none where there is no sketch."""
    if kind != "sketch":
        return {}
    return {"sketch": (sketch_rows, width), "signs": (sketch_rows, num_classes)}


def array_shapes(
    kind: ScatterKind, num_classes: int, width: int, sketch_rows: int, groups: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of `Sums` that are kept, by name."""
    cells = num_classes * max(groups, 1)
    shapes: dict[str, tuple[int, ...] | None] = {
        "counts": (num_classes,),
        "shift": (num_classes, width),
        "sums": (cells, width),
        "squares": (cells,),
        "scatter": scatter_shape(kind, num_classes, width),
        **dict.fromkeys(COUNTERS, ()),
        **sketch_shapes(kind, num_classes, width, sketch_rows),
        "group_counts": (cells,) if groups else None,
    }
    return {name: shape for name, shape in shapes.items() if shape is not None}


def update(
    sums: Sums,
    rows: Array,
    labels: Array,
    xp: Namespace,
    *,
    ignore_index: int = IGNORE_INDEX,
    propagate: bool = False,
    hashes: tuple[Array, Array] | None = None,
    groups: Array | None = None,
) -> Sums:
    """Add a batch to the sums, without leaving the device.

    Parameters
    ----------
    sums : Sums
        The state; its arrays may be updated in place.
    rows : (B, d) float array of any precision
        Features, one row per label.
    labels : (B,) integer array
        Classes 0..C-1; other rows, and rows that hold NaN or Inf, are left out and counted (see `Sums`); `ABSENT`: no row.
    xp : Namespace
        The operations of the arrays' framework.
    propagate : bool
        Count a non-finite row and let it make its own class NaN, instead of leaving it out.
    hashes : pair of (B,) arrays
        Where a sketch is kept: those of `sketch.row_hashes`; of rows that are left out any.
    groups : (B,) integer array
        Where groups are kept: those of `sampling.dealt_groups`; of rows that are left out any.

    Raises
    ------
    ValueError
        If a sketch or groups are kept, and no hashes or groups are given.

    Examples
    --------
    >>> import numpy as np
    >>> from collapsemeter.stats.namespace import NUMPY
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
    kept = known if propagate else used
    # Rows that are left out count as rows of zeros in class 0, so that shapes do not depend on the data.
    bins = xp.where(kept, labels, 0)

    new = None if xp.settled else used & (xp.rows_of(sums.counts, bins) == 0)
    counts = xp.add_counts(sums.counts, bins, kept)
    cells, cell_counts, group_counts = bins, counts, sums.group_counts
    if group_counts is not None:
        if groups is None:
            raise ValueError("these sums keep groups: pass groups=dealt_groups(numbers, G)")
        cells = bins * sums.groups + groups
        cell_counts = group_counts = xp.add_counts(group_counts, cells, kept)

    def first_means(shift: Array) -> Array:
        # Twice: a long sum of large numbers has few digits, and a shift that is off by more than the
        # spread of its class costs the scatter its own. The second mean is that of what was left.
        divisor = xp.to_float(xp.where(new, xp.rows_of(counts, bins), 1))[:, None]
        for _ in range(2):
            left = xp.residuals(rows, shift, bins, new)
            shift = xp.add_class_sum(shift, left / divisor, bins)
        return shift

    shift = sums.shift if new is None else xp.if_any(new, first_means, sums.shift)
    residuals = xp.residuals(rows, shift, bins, used)
    totals = xp.add_class_sum(sums.sums, residuals, cells)
    squares = xp.add_class_sum(sums.squares, xp.square_norms(residuals), cells)
    if propagate:
        stray = xp.add_counts(cell_counts * 0, cells, known & ~finite) > 0
        poison = xp.where(stray, float("nan"), xp.to_float(stray))  # zeros elsewhere
        totals = xp.add(totals, poison[:, None])
        squares = xp.add(squares, poison)
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
        signs = xp.add_entries(signs, sign, buckets, bins)

    def with_left_out(totals: tuple[Array, ...]) -> tuple[Array, ...]:
        unlabelled, mixed = labels == UNLABELLED, labels == MIXED
        invalid = ~(known | ignored | unlabelled | mixed | (labels == ABSENT))
        flags = (ignored, known & ~finite, invalid, unlabelled, mixed)
        return tuple(xp.add(a, xp.count(b)) for a, b in zip(totals, flags, strict=True))

    left_out = tuple(getattr(sums, name) for name in COUNTERS)
    left_out = xp.if_any(~used, with_left_out, left_out)  # of most batches no row is
    return Sums(
        counts=counts,
        shift=shift,
        sums=totals,
        squares=squares,
        scatter=scatter,
        **dict(zip(COUNTERS, left_out, strict=True)),
        sketch=sketch,
        signs=signs,
        group_counts=group_counts,
    )


def init(
    num_classes: int,
    width: int,
    kind: ScatterKind,
    dtype: type[np.floating[Any]] = np.float64,
    sketch_rows: int = SKETCH_ROWS,
    groups: int = 0,
) -> Sums:
    """Return empty sums in NumPy.

    Parameters
    ----------
    num_classes, width : int
    kind : {"class", "pooled", "sketch", "trace"}
    dtype : type
        That of the namespace which updates the sums.
    sketch_rows : int
        k, where a sketch is kept.
    groups : int
        G; 0 for none.

    Examples
    --------
    >>> init(num_classes=2, width=3, kind="trace").scatter is None
    True
    """
    num_classes = check_num_classes(num_classes)
    shapes = array_shapes(kind, num_classes, width, sketch_rows, groups)
    largest = max(map(math.prod, shapes.values()))
    if largest > MOST_ENTRIES:
        raise ValueError(
            f"{num_classes} classes of {width} features: sums of {largest * 8 / 2**30:.0f} GiB are "
            "not allocated; keep a coarser scatter, such as 'pooled' or 'trace', or narrower features"
        )
    arrays = {
        name: np.zeros(shape, np.int64 if name in INTEGERS else dtype)
        for name, shape in shapes.items()
    }
    return Sums(**{"scatter": None, **arrays})
