"""Keras' part of the reduction: its operations."""

from typing import Any

import keras
from keras import ops

from .operations import Tensor, dtype_of


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
