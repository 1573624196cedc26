"""Keras' operations for reduction, row sample and sums, on the backend that is in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import get_stateless_scope

from collapsemeter.stats.namespace import Namespace, block_rows
from collapsemeter.stats.sampling import Wrap, drawn_slots, low_32_bits, uint32
from collapsemeter.stats.sketch import row_hashes

Tensor = Any  # of the backend
Key = tuple[str, int]  # a layer, and which of its calls in one forward
BACKEND = keras.backend.backend()
_JAX = BACKEND == "jax"
# JAX has no 64-bit integers unless the user asks for them: uint32 counts to 4e9 and then stays there.
COUNT = "uint32" if _JAX else "int64"
FULL = 2**32 - 1
_WRAP: Wrap = uint32 if _JAX else low_32_bits


def dtype_of(x: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(keras.backend.standardize_dtype(x.dtype))


def run_if(condition: Tensor, change: Callable[[], None], variables: Sequence[Any]) -> None:
    """Run a function that changes these variables where a scalar is true, inside a compiled step too."""
    if not _JAX:

        def run() -> Tensor:
            change()
            return ops.convert_to_tensor(0)

        ops.cond(condition, run, lambda: ops.convert_to_tensor(0))
        return
    # A branch of JAX has no side effects: values go in and come out.
    outer = get_stateless_scope()

    def changed(values: list[Tensor]) -> list[Tensor]:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)) as scope:
            if outer is not None:
                scope.state_mapping = outer.state_mapping | scope.state_mapping
            change()
        return [scope.get_current_value(variable) for variable in variables]

    before = [variable.value for variable in variables]
    after = ops.cond(condition, lambda: changed(before), lambda: before)
    for variable, value in zip(variables, after, strict=True):
        variable.assign(value)


def counted(flags: Tensor) -> Tensor:
    """Return the number of true flags; a sum may widen or narrow integers, as the backend likes."""
    return ops.cast(ops.sum(ops.cast(flags, COUNT)), COUNT)


def saturated(total: Tensor, part: Tensor) -> Tensor:
    """Return ``total + part``; a uint32 that would wrap around stays full, which a report refuses."""
    new = total + part
    return ops.where(new < total, ops.cast(FULL, COUNT), new) if _JAX else new


class KerasOperations:
    """Keras' operations for `collapsemeter.adapter.reduction.feature_rows`."""

    def is_tensor(self, value: Any) -> bool:
        return keras.ops.is_tensor(value) or isinstance(value, keras.KerasTensor)

    def is_float(self, x: Tensor) -> bool:
        return bool(keras.backend.is_float_dtype(dtype_of(x)))

    def flat(self, x: Tensor) -> Tensor:
        width = 1
        for size in x.shape[1:]:
            width *= int(size)
        return ops.reshape(x, (-1, width))

    def rows(self, x: Tensor) -> Tensor:
        return ops.reshape(x, (-1, int(x.shape[-1])))

    def channels_to_end(self, x: Tensor) -> Tensor:
        return ops.moveaxis(x, 1, -1)

    def mean(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return ops.mean(_widened(x), axis=axes) if axes else x

    def masked_mean(self, x: Tensor, mask: Tensor) -> Tensor:
        x = _widened(x)
        weight = ops.cast(mask != 0, x.dtype)[:, :, None]
        used = ops.where(weight > 0, x, ops.zeros_like(x))
        return ops.sum(used, axis=1) / ops.maximum(ops.sum(weight, axis=1), 1.0)

    def last(self, x: Tensor, mask: Tensor) -> Tensor:
        position = ops.arange(x.shape[1], dtype="int32")
        last = ops.max(ops.where(mask != 0, position, ops.zeros_like(position)), axis=1)
        chosen = position[None, :] == last[:, None]
        return ops.sum(ops.where(chosen[:, :, None], x, ops.zeros_like(x)), axis=1)


OPERATIONS = KerasOperations()


def _widened(x: Tensor) -> Tensor:
    """Half-precision activations are widened before any arithmetic."""
    return x if dtype_of(x) == "float64" else ops.cast(x, "float32")


def hashed(numbers: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return bucket and sign of each row in a sketch, see `collapsemeter.stats.sketch.row_hashes`."""
    buckets, negative = row_hashes(numbers, size, seed, _WRAP)
    return ops.cast(buckets, "int32"), negative


def sample_slots(numbers: Tensor, usable: Tensor, size: int, seed: int) -> Tensor:
    """Return the slot of each row, as `collapsemeter.stats.sampling.reservoir_slots` does; ``size`` is the bin."""
    drawn = drawn_slots(numbers, seed, _WRAP)
    slots = ops.where(numbers < size, numbers, drawn)
    full = ops.cast(size, COUNT)
    slots = ops.cast(ops.where(usable, ops.minimum(slots, full), full), "int32")
    # Of two rows drawn for one slot the later replaces the earlier, as if they came one by one.
    order = ops.cumsum(ops.ones_like(slots), axis=0)
    last = ops.segment_max(order, slots, num_segments=size + 1)
    wins = ops.take(last, slots, axis=0) == order
    return ops.where(wins, slots, ops.cast(size, "int32"))


def namespace_of(variable: keras.Variable) -> Namespace:
    """Return the operations for sums that are kept in the dtype of a variable.

    With PyTorch and TensorFlow totals are variables that are updated in place, so that a batch touches
    only the classes in it; JAX, which has no such thing, does the same to arrays that it owns.
    """
    kind = {"torch": InPlaceTorch, "tensorflow": InPlaceTensorFlow, "jax": KerasNamespace}[BACKEND]
    return kind(keras.backend.standardize_dtype(variable.dtype))


class KerasNamespace:
    """JAX's operations, and Keras' where they serve all backends; nothing is in place."""

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


class InPlaceTensorFlow(KerasNamespace):
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


class InPlaceTorch(KerasNamespace):
    """PyTorch's operations; totals are its tensors."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        if _torch_reduces_products(a.device.type):
            return ops.cast(a.double() @ b.double(), self.dtype)
        return a @ b

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        return table.index_select(0, labels)

    def if_any(self, flags: Tensor, change: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
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
            part = self.product(rows[:, block].T, rows[:, : block.stop])
            total[block, : block.stop].add_(part)
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
