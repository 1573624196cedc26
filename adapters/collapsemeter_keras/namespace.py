"""Keras' operations for `collapsemeter.stats.sums.update`, on the backend that is in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from collapsemeter.stats.namespace import block_rows

from .operations import BACKEND, Tensor, counted, saturated


def namespace_of(variable: keras.Variable) -> KerasNamespace:
    """Return the operations for sums that are kept in the dtype of a variable.

    With PyTorch and TensorFlow totals are variables that are updated in place, so that a batch touches
    only the classes in it; JAX, which has no such thing, does the same to arrays that it owns.
    """
    kind = {"torch": InPlaceTorch, "tensorflow": InPlaceTensorFlow, "jax": KerasNamespace}[BACKEND]
    return kind(keras.backend.standardize_dtype(variable.dtype))


def class_products(num_classes: int) -> int:
    """Return how many pooled products the scatters of single classes cost, see `add_class_products`."""
    if BACKEND == "torch":
        from keras.src.backend.torch.core import get_device

        return 1 if get_device() == "cpu" else num_classes
    return num_classes


class KerasNamespace:
    """JAX's operations, and Keras' where they serve all backends; nothing is in place."""

    settled = False

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a @ b`` in full precision, whatever the user's settings let float32 products run in.

        TF32 and bfloat16 products make NC1 wrong near collapse. The settings themselves are left alone.
        """
        import jax.numpy as jnp

        return jnp.matmul(a, b, precision="highest")

    def to_float(self, rows: Tensor) -> Tensor:
        return ops.cast(rows, self.dtype)

    def where(self, condition: Tensor, a: Tensor, b: Tensor | float) -> Tensor:
        # A Python number takes the dtype of the array beside it, not the backend's default.
        if isinstance(a, int | float):
            a = ops.cast(a, b.dtype)  # type: ignore[union-attr]  # not both are numbers
        if isinstance(b, int | float):
            b = ops.cast(b, a.dtype)
        return ops.where(condition, a, b)

    def finite_rows(self, rows: Tensor) -> Tensor:
        return ops.all(ops.isfinite(rows), axis=1)

    def square_norms(self, rows: Tensor) -> Tensor:
        return ops.sum(rows * rows, axis=1)

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        return ops.take(table, labels, axis=0)

    def write(self, variable: keras.Variable, values: Tensor, start: Tensor | int) -> None:
        """Put rows into a table of rows from ``start`` on."""
        from jax import lax

        values = ops.cast(values, variable.dtype)
        variable.assign(lax.dynamic_update_slice_in_dim(variable.value, values, start, axis=0))

    def place(self, variable: keras.Variable, values: Tensor, slots: Tensor) -> None:
        """Put rows into their slots of a table; of several for one slot any may win."""
        values = ops.cast(values, variable.dtype)
        variable.assign(variable.value.at[slots].set(values))

    def increase(self, variable: keras.Variable, part: Tensor | int) -> None:
        """Add to a counter."""
        variable.assign(saturated(variable.value, ops.cast(part, variable.dtype)))

    def residuals(self, rows: Tensor, table: Tensor, labels: Tensor, used: Tensor) -> Tensor:
        return self.where(used[:, None], rows - self.rows_of(table, labels), 0.0)

    def if_any(self, flags: Tensor, change: Callable[[Any], Any], table: Any) -> Any:
        return ops.cond(ops.any(flags), lambda: change(table), lambda: table)

    def count(self, flags: Tensor) -> Tensor:
        return counted(flags)

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return saturated(total, part) if keras.backend.is_int_dtype(total.dtype) else total + part

    def add_counts(self, total: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        flags = ops.cast(flags, total.dtype)
        return saturated(total, ops.segment_sum(flags, labels, num_segments=int(total.shape[0])))

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        return total.at[labels].add(rows)

    def add_entries(self, total: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return total.at[rows, columns].add(values)

    def add_product(self, total: Tensor, rows: Tensor) -> Tensor:
        width = int(rows.shape[1])
        lower = [
            ops.pad(
                self.product(ops.transpose(rows[:, b]), rows[:, : b.stop]),
                [[0, 0], [0, width - b.stop]],
            )
            for b in block_rows(width)
        ]
        return self.add(total, ops.concatenate(lower))

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        num_classes, width, _ = (int(size) for size in total.shape)
        one_hot = labels[:, None] == ops.arange(num_classes, dtype=labels.dtype)
        spread = ops.cast(one_hot, self.dtype)[:, :, None] * rows[:, None, :]
        spread = ops.reshape(spread, (-1, num_classes * width))
        product = ops.reshape(self.product(ops.transpose(spread), rows), total.shape)
        return self.add(total, product)


class InPlaceTensorFlow(KerasNamespace):
    """TensorFlow's operations; totals are its variables."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        import tensorflow as tf

        allowed = tf.config.experimental.tensor_float_32_execution_enabled()
        if allowed and tf.config.list_physical_devices("GPU"):
            wide = ops.matmul(ops.cast(a, "float64"), ops.cast(b, "float64"))
            return ops.cast(wide, self.dtype)
        return ops.matmul(a, b)

    def write(self, variable: keras.Variable, values: Tensor, start: Tensor | int) -> None:
        import tensorflow as tf

        # A slice that starts anywhere is no operation of XLA.
        self.place(variable, values, tf.cast(start, "int32") + tf.range(tf.shape(values)[0]))

    def place(self, variable: keras.Variable, values: Tensor, slots: Tensor) -> None:
        import tensorflow as tf

        values = tf.IndexedSlices(ops.cast(values, variable.dtype), slots)
        variable.value.scatter_update(values)

    def increase(self, variable: keras.Variable, part: Tensor | int) -> None:
        variable.value.assign_add(ops.cast(part, variable.dtype))

    def if_any(self, flags: Tensor, change: Callable[[Any], Any], table: Any) -> Any:
        import tensorflow as tf

        def changed() -> Tensor:
            change(table)
            return tf.constant(0)

        tf.cond(tf.reduce_any(flags), changed, lambda: tf.constant(0))
        return table

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        total.assign_add(ops.broadcast_to(part, total.shape))
        return total

    def add_counts(self, total: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        import tensorflow as tf

        if isinstance(total, tf.Variable):
            return self.add_class_sum(total, ops.cast(flags, total.dtype), labels)
        return super().add_counts(total, labels, flags)  # a part of a batch, not yet in a total

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        import tensorflow as tf

        total.scatter_add(tf.IndexedSlices(rows, labels))
        return total

    def add_entries(self, total: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        total.scatter_nd_add(ops.stack([rows, columns], axis=1), values)
        return total


class InPlaceTorch(KerasNamespace):
    """PyTorch's operations; totals are its tensors."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        if _torch_reduces_products(a.device.type):
            return ops.cast(a.double() @ b.double(), self.dtype)
        return a @ b

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        return table.index_select(0, labels)

    def write(self, variable: keras.Variable, values: Tensor, start: Tensor | int) -> None:
        variable.value.narrow(0, start, len(values)).copy_(values)

    def place(self, variable: keras.Variable, values: Tensor, slots: Tensor) -> None:
        variable.value.index_copy_(0, slots.long(), values.to(variable.value.dtype))

    def increase(self, variable: keras.Variable, part: Tensor | int) -> None:
        variable.value.add_(part)

    def if_any(self, flags: Tensor, change: Callable[[Any], Any], table: Any) -> Any:
        # To look at the flags of a device would wait for it.
        return change(table) if flags.device.type != "cpu" or flags.any() else table

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return total.add_(part)

    def add_counts(self, total: Tensor, labels: Tensor, flags: Tensor) -> Tensor:
        return total.index_add_(0, labels, flags.to(total.dtype))

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        return total.index_add_(0, labels, rows)

    def add_entries(self, total: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return total.index_put_((rows, columns), values, accumulate=True)

    def add_product(self, total: Tensor, rows: Tensor) -> Tensor:
        for block in block_rows(rows.shape[1]):
            left, right, into = rows[:, block].T, rows[:, : block.stop], total[block, : block.stop]
            if _torch_reduces_products(rows.device.type):
                into.add_(self.product(left, right))
            else:
                into.addmm_(left, right)
        return total

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        if rows.device.type != "cpu":
            return super().add_class_products(total, rows, labels)
        for label in labels.unique().tolist():  # one small product for each class that is there
            self.add_product(total[label], rows[labels == label])
        return total


def _torch_reduces_products(device: str) -> bool:
    """Whether the user lets float32 products on that kind of device run in TF32 or bfloat16."""
    import torch

    if not hasattr(torch.backends, "fp32_precision"):  # before PyTorch 2.9
        return torch.get_float32_matmul_precision() != "highest"
    # These getters neither warn nor fail where older and newer settings are mixed.
    backend: Any = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    chosen = backend.matmul.fp32_precision
    if chosen == "none":
        chosen = torch.backends.fp32_precision
    return chosen in ("tf32", "bf16")
