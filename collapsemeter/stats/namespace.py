"""The operations that the update needs of a framework, and NumPy's."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Array = Any  # of the framework that the namespace speaks for


class Namespace(Protocol):
    """The operations that `sums.update` needs of a framework; labels are 0..n-1. ``add*`` and ``if_any`` may work in place."""

    settled: bool  # every class is known to have its shift

    def to_float(self, rows: Array) -> Array:
        """Cast to the dtype the sums are kept in, before any arithmetic."""

    def where(self, condition: Array, a: Array, b: Array | float) -> Array: ...
    def finite_rows(self, rows: Array) -> Array:
        """(B, d) -> (B,) bool: no NaN or Inf in the row."""

    def square_norms(self, rows: Array) -> Array:
        """(B, d) -> (B,): sum of squares of each row."""

    def rows_of(self, table: Array, labels: Array) -> Array:
        """(n,) -> (B,): the entry of each label."""

    def residuals(self, rows: Array, table: Array, labels: Array, used: Array) -> Array:
        """(B, d) rows less the row of each label in the (n, d) table; zeros where not used."""

    def if_any(self, flags: Array, change: Callable[[Any], Any], table: Any) -> Any:
        """``change(table)``, or the table (or tables) itself where no flag is set: ``change`` would change nothing."""

    def count(self, flags: Array) -> Array:
        """(B,) bool -> scalar integer."""

    def add(self, total: Array, part: Array) -> Array: ...
    def add_counts(self, total: Array, labels: Array, flags: Array) -> Array:
        """(n,) integers ``total`` plus how many flags are set of each label."""

    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        """(n, ...) ``total`` plus the sums of the (B, ...) rows with each label."""

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        """(n, m) ``total`` plus each of (B,) values in its row and column."""

    def add_product(self, total: Array, rows: Array) -> Array:
        """``total + rows.T @ rows`` in full precision; only the lower triangle is ever read."""

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        """(n, d, d) ``total`` plus ``rows_c.T @ rows_c`` for every label c, as in `add_product`."""


def block_rows(width: int, most: int = 4) -> list[slice]:
    """Return the rows of each block of a lower triangle, for libraries without a symmetric product.

    Block ``[rows, :rows.stop]`` of each, the diagonal included. Blocks narrower than 128 cost more than they save.

    Examples
    --------
    >>> block_rows(300)
    [slice(0, 128, None), slice(128, 256, None), slice(256, 300, None)]
    """
    step = max(128, -(-width // most))
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


class Numpy:
    """NumPy's operations, with the sums in one dtype."""

    settled = False

    def __init__(self, dtype: type[np.floating[Any]] = np.float64) -> None:
        self.dtype = dtype

    def to_float(self, rows: Array) -> Array:
        return np.asarray(rows).astype(self.dtype, copy=False)

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return np.where(condition, a, b)

    def finite_rows(self, rows: Array) -> Array:
        return np.isfinite(rows).all(axis=1)

    def square_norms(self, rows: Array) -> Array:
        return (rows * rows).sum(axis=1)

    def rows_of(self, table: Array, labels: Array) -> Array:
        return table[labels]

    def residuals(self, rows: Array, table: Array, labels: Array, used: Array) -> Array:
        # `where`, not a product with a mask: 0 * NaN is NaN.
        return np.where(used[:, None], rows - table[labels], 0.0)

    def if_any(self, flags: Array, change: Callable[[Any], Any], table: Any) -> Any:
        return change(table) if flags.any() else table

    def count(self, flags: Array) -> Array:
        return flags.sum()

    def add(self, total: Array, part: Array) -> Array:
        return total + part

    def add_counts(self, total: Array, labels: Array, flags: Array) -> Array:
        return total + np.bincount(labels[flags], minlength=len(total))

    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        total = total.copy()
        if len(labels):
            order = np.argsort(labels, kind="stable")  # rows of one class lie side by side
            present, starts = np.unique(labels[order], return_index=True)
            total[present] += np.add.reduceat(rows[order], starts, axis=0)
        return total

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        total = total.copy()
        np.add.at(total, (rows, columns), values)
        return total

    def add_product(self, total: Array, rows: Array) -> Array:
        return total + rows.T @ rows

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        total = total.copy()
        for label in np.unique(labels):
            total[label] += rows[labels == label].T @ rows[labels == label]
        return total


NUMPY = Numpy()
