"""What `collapsemeter.stats.sums.update` needs, in the operations of Keras' backend."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from collapsemeter.stats.namespace import Namespace, block_rows

from .operations import Tensor, counted, saturated

_BACKEND = keras.backend.backend()


def namespace_of(variable: keras.Variable) -> Namespace:
    """Return the operations for sums that are kept in the dtype of a variable, on its device.

    With PyTorch and TensorFlow totals are variables that are updated in place, so that a batch touches
    only the classes in it; JAX, which has no such thing, does the same to arrays that it owns.
    """
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if _BACKEND == "torch":
        import torch

        from collapsemeter_torch.device import TorchNamespace, products_are_reduced

        reduced = products_are_reduced(variable.value.device.type)
        return TorchNamespace(getattr(torch, dtype), widen=reduced)
    return InPlace(dtype) if _BACKEND == "tensorflow" else KerasNamespace(dtype)


class KerasNamespace:
    """JAX's operations, and Keras' where they serve TensorFlow as well; nothing is in place."""

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

    def residuals(self, rows: Tensor, table: Tensor, labels: Tensor, used: Tensor) -> Tensor:
        return self.where(used[:, None], rows - self.rows_of(table, labels), 0.0)

    def if_any(self, flags: Tensor, change: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
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
        for block in block_rows(int(rows.shape[1])):
            part = self.product(rows[:, block].T, rows[:, : block.stop])
            total = total.at[block, : block.stop].add(part)
        return total

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        num_classes, width, _ = (int(size) for size in total.shape)
        one_hot = labels[:, None] == ops.arange(num_classes, dtype=labels.dtype)
        spread = ops.cast(one_hot, self.dtype)[:, :, None] * rows[:, None, :]
        spread = ops.reshape(spread, (-1, num_classes * width))
        product = ops.reshape(self.product(ops.transpose(spread), rows), total.shape)
        return self.add(total, product)


class InPlace(KerasNamespace):
    """TensorFlow's operations; totals are its variables."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        import tensorflow as tf

        allowed = tf.config.experimental.tensor_float_32_execution_enabled()
        if allowed and tf.config.list_physical_devices("GPU"):
            wide = ops.matmul(ops.cast(a, "float64"), ops.cast(b, "float64"))
            return ops.cast(wide, self.dtype)
        return ops.matmul(a, b)

    def if_any(self, flags: Tensor, change: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
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

    def add_product(self, total: Tensor, rows: Tensor) -> Tensor:
        return self.add(total, self.product(ops.transpose(rows), rows))
