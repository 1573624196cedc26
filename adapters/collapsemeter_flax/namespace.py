"""JAX's operations for the sums, and counters that stop at their end instead of starting again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from collapsemeter.stats.namespace import block_rows

FULL = 2**32 - 1  # where a counter stops: a report of a state that holds it raises
AxisName = str | tuple[str, ...] | None


def product(a: Array, b: Array) -> Array:
    """Return ``a @ b`` in full precision: accelerators would take TF32 or bfloat16 by default."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def counted(total: Array, part: Array) -> Array:
    """Add to a counter of 32 bits, which stays at 2^32 - 1 once it is there: a device may have no 64-bit integers."""
    added = total + part
    return jnp.where(added < total, jnp.uint32(FULL), added)


class JaxNamespace:
    """JAX's operations for `collapsemeter.stats.sums.update`, over a mapped axis where the batch is split over one."""

    settled = False

    def __init__(self, dtype: Any, axis_name: AxisName = None) -> None:
        self.dtype = jnp.dtype(dtype)
        self.axis_name = axis_name

    def across(self, part: Array) -> Array:
        """Sum over the devices that share the batch."""
        if self.axis_name is None:
            return part
        total: Array = lax.psum(part, self.axis_name)
        return total

    def gathered(self, rows: Array) -> Array:
        """(B, ...) of each device -> (devices B, ...) on every one, in the order of the axis.

        A sum of blocks that are zero elsewhere, not ``all_gather``: of a sum `shard_map` knows that
        every device holds the same.
        """
        if self.axis_name is None:
            return rows
        devices: int = lax.psum(1, self.axis_name)
        blocks = jnp.zeros((devices, *rows.shape), rows.dtype)
        blocks = blocks.at[lax.axis_index(self.axis_name)].set(rows)
        return self.across(blocks).reshape(-1, *rows.shape[1:])

    def of_this_device(self, rows: Array) -> Array:
        """(devices B, ...) as `gathered` returns them -> (B, ...) of this device."""
        if self.axis_name is None:
            return rows
        devices: int = lax.psum(1, self.axis_name)
        size = rows.shape[0] // devices
        return lax.dynamic_slice_in_dim(rows, lax.axis_index(self.axis_name) * size, size)

    def to_float(self, rows: Array) -> Array:
        return rows.astype(self.dtype)

    def where(self, condition: Array, a: Array, b: Array | float) -> Array:
        return jnp.where(condition, a, b)

    def finite_rows(self, rows: Array) -> Array:
        return jnp.abs(rows).max(axis=1, initial=0.0) < jnp.inf  # one pass; NaN is not below it

    def square_norms(self, rows: Array) -> Array:
        return (rows * rows).sum(axis=1)

    def rows_of(self, table: Array, labels: Array) -> Array:
        return table[labels]

    def residuals(self, rows: Array, table: Array, labels: Array, used: Array) -> Array:
        return jnp.where(used[:, None], rows - table[labels], 0.0)

    def if_any(self, flags: Array, change: Callable[[Any], Any], table: Any) -> Any:
        # Of all devices, which take one branch and sum within it.
        any_at_all = self.count(flags) > 0
        try:
            changed = lax.cond(any_at_all, change, lambda same: same, table)
        except TypeError:  # rows are split over an axis that was not named
            return change(table)  # which JAX refuses at the end, with a better word for it
        return changed

    def count(self, flags: Array) -> Array:
        return self.across(flags.sum(dtype=jnp.uint32))

    def add(self, total: Array, part: Array) -> Array:
        if jnp.issubdtype(total.dtype, jnp.integer):
            return counted(total, part.astype(total.dtype))
        return total + part

    def add_counts(self, total: Array, labels: Array, flags: Array) -> Array:
        part = jax.ops.segment_sum(flags.astype(jnp.uint32), labels, len(total))
        return counted(total, self.across(part))

    def add_class_sum(self, total: Array, rows: Array, labels: Array) -> Array:
        if self.axis_name is None:
            return total.at[labels].add(rows)
        return total + self.across(jax.ops.segment_sum(rows, labels, total.shape[0]))

    def add_entries(self, total: Array, values: Array, rows: Array, columns: Array) -> Array:
        return total + self.across(jnp.zeros_like(total).at[rows, columns].add(values))

    def add_product(self, total: Array, rows: Array) -> Array:
        width = rows.shape[1]
        lower = [
            jnp.pad(product(rows[:, b].T, rows[:, : b.stop]), ((0, 0), (0, width - b.stop)))
            for b in block_rows(width)
        ]
        return total + self.across(jnp.concatenate(lower))

    def add_class_products(self, total: Array, rows: Array, labels: Array) -> Array:
        num_classes, width, _ = total.shape
        one_hot = (labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)).astype(
            self.dtype
        )
        flat = (one_hot[:, :, None] * rows[:, None, :]).reshape(rows.shape[0], num_classes * width)
        return total + self.across(product(flat.T, rows)).reshape(num_classes, width, width)
