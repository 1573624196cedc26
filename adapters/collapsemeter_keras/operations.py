"""Keras' operations for the core's update, reduction and row sample, on any backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import get_stateless_scope

from collapsemeter.sampling import Wrap, drawn_slots, low_32_bits, uint32
from collapsemeter.sketch import row_hashes

Tensor = Any  # of the backend
NATIVE_CLASSES = 100  # from about here a segment sum beats a product with one-hot labels
_JAX = keras.backend.backend() == "jax"
# JAX has no 64-bit integers unless the user asks for them: uint32 counts to 4e9 and then stays there.
COUNT = "uint32" if _JAX else "int64"
FULL = 2**32 - 1
_WRAP: Wrap = uint32 if _JAX else low_32_bits


def full_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in full precision, whatever the user's settings let float32 products run in.

    TF32 and bfloat16 products make NC1 wrong near collapse. The settings themselves are left alone.
    """
    if _JAX:
        import jax.numpy as jnp

        return jnp.matmul(a, b, precision="highest")
    if _products_are_reduced(a):
        wide = ops.matmul(ops.cast(a, "float64"), ops.cast(b, "float64"))
        return ops.cast(wide, a.dtype)
    return ops.matmul(a, b)


def run_if(due: Tensor, change: Callable[[], None], variables: Sequence[keras.Variable]) -> None:
    """Run a function that changes these variables where a scalar is true, inside a compiled step too.

    Parameters
    ----------
    due : boolean scalar
    change : callable without arguments
    variables : sequence of Variable
    """
    if not _JAX:

        def run() -> Tensor:
            change()
            return ops.convert_to_tensor(0)

        ops.cond(due, run, lambda: ops.convert_to_tensor(0))
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
    after = ops.cond(due, lambda: changed(before), lambda: before)
    for variable, value in zip(variables, after, strict=True):
        variable.assign(value)


def _products_are_reduced(a: Tensor) -> bool:
    if keras.backend.backend() == "torch":
        from collapsemeter_torch.device import products_are_reduced

        return products_are_reduced(a.device.type)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        allowed = tf.config.experimental.tensor_float_32_execution_enabled()
        return bool(allowed and tf.config.list_physical_devices("GPU"))
    return False


class KerasNamespace:
    """Keras' operations for `collapsemeter.sums.update`; nothing is updated in place."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

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

    def total(self, rows: Tensor) -> Tensor:
        return ops.sum(rows, axis=0)

    def square_norms(self, rows: Tensor) -> Tensor:
        return ops.sum(rows * rows, axis=1)

    def one_hot(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels[:, None] == ops.arange(num_classes, dtype=labels.dtype)

    def class_counts(self, labels: Tensor, num_classes: int) -> Tensor:
        if num_classes < NATIVE_CLASSES:
            return counted(self.one_hot(labels, num_classes), axis=0)
        ones = ops.cast(ops.ones_like(labels), COUNT)
        return ops.segment_sum(ones, labels, num_segments=num_classes + 1)[:num_classes]

    def class_sum(self, rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        if num_classes < NATIVE_CLASSES:
            one_hot = ops.cast(self.one_hot(labels, num_classes), self.dtype)
            return full_product(ops.transpose(one_hot), rows)
        return ops.segment_sum(rows, labels, num_segments=num_classes + 1)[:num_classes]

    def rows_of(self, table: Tensor, labels: Tensor) -> Tensor:
        last = ops.cast(int(table.shape[0]) - 1, labels.dtype)
        return ops.take(table, ops.minimum(labels, last), axis=0)

    def count(self, flags: Tensor) -> Tensor:
        return counted(flags)

    def assign(self, old: Tensor, new: Tensor) -> Tensor:
        return new

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return saturated(total, part) if keras.backend.is_int_dtype(total.dtype) else total + part

    def add_class_sum(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        return total + ops.segment_sum(rows, labels, num_segments=int(total.shape[0]))

    def add_entries(self, total: Tensor, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = (int(size) for size in total.shape)
        entries = ops.segment_sum(values, rows * width + columns, num_segments=height * width)
        return total + ops.reshape(entries, (height, width))

    def add_product(self, total: Tensor, rows: Tensor) -> Tensor:
        return total + full_product(ops.transpose(rows), rows)

    def add_class_products(self, total: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        num_classes, width, _ = (int(size) for size in total.shape)
        one_hot = ops.cast(self.one_hot(labels, num_classes), self.dtype)
        spread = ops.reshape(one_hot[:, :, None] * rows[:, None, :], (-1, num_classes * width))
        product = full_product(ops.transpose(spread), rows)
        return total + ops.reshape(product, (num_classes, width, width))


def counted(flags: Tensor, axis: int | None = None) -> Tensor:
    """Return the number of true flags; a sum may widen or narrow integers, as the backend likes."""
    return ops.cast(ops.sum(ops.cast(flags, COUNT), axis=axis), COUNT)


def saturated(total: Tensor, part: Tensor) -> Tensor:
    """Return ``total + part``; a uint32 that would wrap around stays full, which a report refuses."""
    if not _JAX:
        return total + part
    new = total + part
    return ops.where(new < total, ops.cast(FULL, COUNT), new)


class KerasOperations:
    """Keras' operations for `collapsemeter.reduction.feature_rows`."""

    def is_tensor(self, value: Any) -> bool:
        return keras.ops.is_tensor(value) or isinstance(value, keras.KerasTensor)

    def is_float(self, x: Tensor) -> bool:
        return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))

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
        return ops.mean(_wide(x), axis=axes) if axes else x

    def masked_mean(self, x: Tensor, mask: Tensor) -> Tensor:
        x = _wide(x)
        weight = ops.cast(mask != 0, x.dtype)[:, :, None]
        kept = ops.where(weight > 0, x, ops.zeros_like(x))
        return ops.sum(kept, axis=1) / ops.maximum(ops.sum(weight, axis=1), 1.0)

    def last(self, x: Tensor, mask: Tensor) -> Tensor:
        position = ops.arange(x.shape[1], dtype="int32")
        last = ops.max(ops.where(mask != 0, position, ops.zeros_like(position)), axis=1)
        chosen = position[None, :] == last[:, None]
        return ops.sum(ops.where(chosen[:, :, None], x, ops.zeros_like(x)), axis=1)


OPERATIONS = KerasOperations()


def _wide(x: Tensor) -> Tensor:
    """Half-precision activations are widened before any arithmetic."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return x if dtype == "float64" else ops.cast(x, "float32")


def hashed(numbers: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return bucket and sign of each row in a sketch, see `collapsemeter.sketch.row_hashes`.

    Parameters
    ----------
    numbers : (B,) of `COUNT`
        Row numbers.
    size, seed : int

    Returns
    -------
    buckets : (B,) int32
    negative : (B,) bool
    """
    buckets, negative = row_hashes(numbers, size, seed, _WRAP)
    return ops.cast(buckets, "int32"), negative


def sample_slots(numbers: Tensor, usable: Tensor, size: int, seed: int) -> Tensor:
    """Say where each row goes in the sample, as `collapsemeter.sampling.reservoir_slots` does.

    Parameters
    ----------
    numbers : (B,) of `COUNT`
        Row numbers; of a row that is not usable any.
    usable : (B,) bool
    size, seed : int

    Returns
    -------
    (B,) int32 tensor of slots 0..size; only slot ``size``, the bin, occurs more than once
    """
    drawn = drawn_slots(numbers, seed, _WRAP)
    slots = ops.where(numbers < size, numbers, drawn)
    full = ops.cast(size, COUNT)
    slots = ops.cast(ops.where(usable, ops.minimum(slots, full), full), "int32")
    # Of two rows drawn for one slot the later replaces the earlier, as if they came one by one.
    order = ops.cumsum(ops.ones_like(slots), axis=0)
    last = ops.segment_max(order, slots, num_segments=size + 1)
    wins = ops.take(last, slots, axis=0) == order
    return ops.where(wins, slots, ops.cast(size, "int32"))
