"""The generic form of the update's operations: every class operation as a product with one-hot labels.

It needs only comparison, matrix product, sum and `where`, and is the oracle for the indexed forms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collapsemeter.stats.namespace import Array, Numpy


class OneHotNumpy(Numpy):
    """NumPy's operations without an indexed sum."""

    def one_hot(self, labels: Array, num_classes: int) -> Array:
        return self.to_float(labels[:, None] == np.arange(num_classes))

    def rows_of(self, table: Array, labels: Array) -> Array:
        return ((labels[:, None] == np.arange(len(table))) * table).sum(axis=1)

    def residuals(self, rows: Array, table: Array, labels: Array, used: Array) -> Array:
        # `where`, not a product with a mask: 0 * NaN is NaN.
        return self.where(used[:, None], rows - self.one_hot(labels, len(table)) @ table, 0.0)

    def if_any(self, flags: Array, change: Callable[[Array], Array], table: Array) -> Array:
        return change(table)

    def add_counts(self, total: Array, labels: Array, flags: Array) -> Array:
        return total + (flags[:, None] & (labels[:, None] == np.arange(len(total)))).sum(axis=0)

    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        return total + self.one_hot(labels, len(total)).T @ rows

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        spread = self.one_hot(columns, total.shape[1]) * values[:, None]
        return self.add_class_sum(total, spread, rows)

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        num_classes, width, _ = total.shape
        spread = self.one_hot(labels, num_classes)[:, :, None] * rows[:, None, :]
        flat = spread.reshape(len(rows), num_classes * width)
        return total + (flat.T @ rows).reshape(num_classes, width, width)
