"""JAX's part of the reduction: its operations, and rows without their gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from collapsemeter.adapter import reduction as core
from collapsemeter.adapter.reduction import Layout, Reduction


class JaxOperations:
    """JAX's operations for `collapsemeter.adapter.reduction.feature_rows`."""

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, Array | np.ndarray)

    def is_float(self, x: Array) -> bool:
        return bool(jnp.issubdtype(x.dtype, jnp.floating))

    def flat(self, x: Array) -> Array:
        return x.reshape(x.shape[0], -1) if x.size else x.reshape(x.shape[0], _size(x.shape[1:]))

    def rows(self, x: Array) -> Array:
        return x.reshape(_size(x.shape[:-1]), x.shape[-1])

    def channels_to_end(self, x: Array) -> Array:
        return jnp.moveaxis(x, 1, -1)

    def mean(self, x: Array, axes: tuple[int, ...]) -> Array:
        return x.mean(axes, dtype=_wide(x)) if axes else x

    def masked_mean(self, x: Array, mask: Array) -> Array:
        weight = (mask != 0)[:, :, None]
        used = jnp.where(weight, x.astype(_wide(x)), 0.0)
        return used.sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)

    def last(self, x: Array, mask: Array) -> Array:
        position = jnp.where(mask != 0, jnp.arange(x.shape[1]), 0).max(axis=1)
        return jnp.take_along_axis(x, position[:, None, None], axis=1)[:, 0]


JAX = JaxOperations()


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _wide(x: Array) -> Any:
    """The dtype to average in: half-precision activations are widened before any arithmetic."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def feature_rows(
    output: Any,
    labels: tuple[int, ...],
    mask: Array | None,
    *,
    layer: str,
    reduction: Reduction,
) -> tuple[Array, str]:
    """Reduce what a layer gave to one row per label, without its gradient, and name the dtype it computed in."""
    output = jax.tree.map(lambda leaf: lax.stop_gradient(jnp.asarray(leaf)), output)
    dtype, layout = "", None
    if not callable(reduction):
        output = core.tensor_of(output, layer, labels, JAX)
        layout = Layout(channels_first=False, width=output.shape[-1] if output.ndim else None)
        dtype = output.dtype.name
    rows: Array = core.feature_rows(
        output, labels, mask, JAX, layer=layer, layout=layout, reduction=reduction
    )
    return rows, dtype or rows.dtype.name
