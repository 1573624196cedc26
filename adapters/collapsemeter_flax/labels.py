"""Labels and decisions of a batch, also inside of a trace, where nobody may look at a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from collapsemeter.adapter.batches import require_labels
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.labels import (
    ArrayLabels,
    check_dtype,
    class_labels,
    coded,
    dtype_name,
    host_array,
)

from .state import UNDECIDED

JAX_LABELS = ArrayLabels(jnp, jnp.int32)


def label_shape(labels: Any, features: Mapping[str, Any], num_classes: int) -> tuple[int, ...]:
    """Return the shape that labels have as one integer a row, (B,) or (B, T)."""
    return _read_shape(labels, features, num_classes)[0]


def _read_shape(
    labels: Any, features: Mapping[str, Any], num_classes: int
) -> tuple[tuple[int, ...], bool]:
    """Return the shape of one integer a row, and whether the labels are one-hot.

    Shapes and dtype alone decide, as they must where a step is compiled.
    """
    shape: tuple[int, ...] = labels.shape
    tokens = token_labels(shape, features)
    integers = labels.dtype.kind in "iu"
    one_hot = len(shape) > 1 and shape[-1] == num_classes >= 2 and not (tokens and integers)
    if not shape:
        raise ValueError("labels are one number: pass one label per row, shape (B,)")
    if not one_hot:
        check_dtype(dtype_name(labels.dtype), shape, num_classes)
    if one_hot or (len(shape) == 2 and shape[1] == 1 and not tokens):
        shape = shape[:-1]
    return shape, one_hot


def token_labels(labels: tuple[int, ...], features: Mapping[str, Any]) -> bool:
    """Whether labels of this shape may be one for each token: every layer gave a row for each of them."""
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(value)] for value in features.values()]
    return len(labels) > 1 and all(
        any(shape[:-1] == labels for shape in of_layer) for of_layer in shapes
    )


def checked_labels(
    labels: Any, features: Mapping[str, Any], settings: Settings
) -> tuple[tuple[int, ...], bool, Any]:
    """Return the labels' shape, (B,) or (B, T), whether they are one-hot, and the labels.

    Labels whose values are at hand are checked, and come as class numbers.
    """
    require_labels(labels)
    array = labels if isinstance(labels, Array | np.ndarray) else host_array(labels)
    shape, one_hot = _read_shape(array, features, settings.num_classes)
    if not _is_at_hand(labels):
        return shape, one_hot, array
    tokens = token_labels(array.shape, features)
    classes = class_labels(
        array,
        settings.num_classes,
        ignore_index=settings.ignore_index,
        tokens=tokens,
        mixed=settings.mixed,
    )
    # Explicitly: `jax.transfer_guard` forbids all else.
    return shape, False, jax.device_put(np.asarray(classes, np.int32))


def flat_labels(labels: Array, settings: Settings, one_hot: bool) -> Array:
    """Return labels as (N,) int32."""
    classes = coded(
        labels,
        settings.num_classes,
        settings.ignore_index,
        JAX_LABELS,
        one_hot=one_hot,
        mixed=settings.mixed,
    )
    return jnp.asarray(classes, jnp.int32).reshape(-1)


def _is_at_hand(labels: Any) -> bool:
    """Whether the labels' values can be read without waiting for a device."""
    if isinstance(labels, jax.core.Tracer):
        return False
    if isinstance(labels, Array):
        return labels.is_fully_addressable and all(d.platform == "cpu" for d in labels.devices())
    return True


def decided_classes(
    logits: Any, labels: tuple[int, ...], num_classes: int, threshold: float = 0.0
) -> Array:
    """Return the network's decisions, (N,) int32; -1 where a score is NaN."""
    rows = int(np.prod(labels, dtype=np.int64))
    if logits is None:
        return jnp.full(rows, UNDECIDED, jnp.int32)
    scores = jax.lax.stop_gradient(logits)
    if scores.shape == labels and num_classes == 2:
        scores = scores[..., None]
    single = num_classes == 2 and scores.shape == (*labels, 1)
    if not single and scores.shape != (*labels, num_classes):
        raise ValueError(
            f"logits have shape {scores.shape} and labels {labels}: pass one row of {num_classes} "
            "per label, or leave logits out"
        )
    scores = scores.reshape(rows, scores.shape[-1])
    chosen = scores[:, 0] > threshold if single else scores.argmax(axis=1)
    return jnp.where(jnp.isnan(scores).any(axis=1), -1, chosen.astype(jnp.int32))
