"""Labels and decisions as a compiled step has them: tensors whose values nobody may look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from collapsemeter.settings import Settings

from .operations import COUNT, Tensor


def main_output(y_pred: Any, which: str | None) -> Tensor:
    """Return the tensor of scores among a model's outputs.

    Raises
    ------
    ValueError
        If there are several and ``labels=`` names none of them.
    """
    if isinstance(y_pred, Mapping):
        found = y_pred.get(which) if which is not None else None
        if found is None and len(y_pred) == 1:
            found = next(iter(y_pred.values()))
        if found is None:
            raise ValueError(
                f"the model gives {', '.join(map(repr, y_pred))}: name the classifier's output and "
                "labels with labels="
            )
        return found
    if isinstance(y_pred, list | tuple):
        if len(y_pred) != 1:
            raise ValueError(
                f"the model gives {len(y_pred)} outputs without names: give them names, and name "
                "the classifier's with labels="
            )
        return y_pred[0]
    return y_pred


def given_labels(x: Any, y: Any, labels: Any) -> Any:
    """Return the labels among what a step was given.

    Parameters
    ----------
    x, y : inputs and targets of the step
    labels : None, str or callable
        Key of the labels among the targets (or the inputs), or ``labels(x, y)``.

    Raises
    ------
    ValueError
        If there is not one tensor of labels.
    """
    if callable(labels):
        return labels(x, y)
    for place in (y, x):
        if labels is not None and isinstance(place, Mapping) and labels in place:
            return place[labels]
    if isinstance(y, Mapping | list | tuple) and len(y) == 1:
        return next(iter(y.values())) if isinstance(y, Mapping) else y[0]
    if y is None or isinstance(y, Mapping | list | tuple):
        what = "no y" if y is None else f"y as a {type(y).__name__}"
        keys = f" with {', '.join(map(repr, y))}" if isinstance(y, Mapping) else ""
        raise ValueError(
            f"the step got {what}{keys}: say where the labels are with labels=, a key or a "
            "callable (x, y) -> labels"
        )
    return y


def class_labels(y: Tensor, y_pred: Tensor, settings: Settings) -> Tensor:
    """Return integer labels, (B,) or (B, T, ...), whatever form the loss takes them in.

    One-hot rows, which have the shape of the scores, name their class; a row that is not one-hot, such
    as a mixture of two, and a number that is no integer get a label that is no class and is counted as
    such.

    Raises
    ------
    ValueError
        If targets and scores do not fit each other.
    """
    y = ops.stop_gradient(ops.convert_to_tensor(y))
    num_classes = settings.num_classes
    no_class = num_classes + (settings.ignore_index == num_classes)
    axes, width = len(y.shape), y.shape[-1] if len(y.shape) else None
    scores = len(y_pred.shape)
    if axes == scores and width == num_classes and y_pred.shape[-1] == num_classes:
        hot = y == 1
        pure = ops.all(hot | (y == 0), axis=-1) & (ops.sum(ops.cast(hot, "int32"), axis=-1) == 1)
        return ops.where(pure, ops.argmax(ops.cast(hot, "int32"), axis=-1), no_class)
    if axes == scores and width == 1:
        y = ops.squeeze(y, axis=-1)
    elif axes != scores - 1:
        raise ValueError(
            f"the targets have shape {tuple(y.shape)} and the scores {tuple(y_pred.shape)}: pass "
            "integer classes or one-hot rows, or say where the labels are with labels="
        )
    dtype = keras.backend.standardize_dtype(y.dtype)
    if keras.backend.is_float_dtype(dtype):
        whole = ops.cast(y, "int32")
        return ops.where(ops.cast(whole, y.dtype) == y, whole, no_class)
    # Unsigned labels would not hold an ignore_index below zero, and uint8 not every class.
    return ops.cast(y, "int32")


def without_masked(labels: Tensor, y_pred: Tensor, sample_weight: Any, ignore_index: int) -> Tensor:
    """Ignore what the loss ignores: positions that Keras masks, and rows of weight zero."""
    mask = getattr(y_pred, "_keras_mask", None)
    if mask is not None and len(mask.shape) == len(labels.shape):
        labels = ops.where(ops.cast(mask, "bool"), labels, ignore_index)
    if sample_weight is not None and ops.is_tensor(sample_weight):
        weight = sample_weight
        if len(weight.shape) == len(labels.shape) + 1 and weight.shape[-1] == 1:
            weight = ops.squeeze(weight, axis=-1)
        if len(weight.shape) == len(labels.shape):
            labels = ops.where(weight == 0, ignore_index, labels)
    return labels


def decisions(y_pred: Tensor, head: keras.layers.Dense | None) -> Tensor:
    """Return the class that the network decides on, (N,), of scores (..., C).

    A single score decides between two classes: by its sign, or at one half after a sigmoid.
    """
    width = int(y_pred.shape[-1])
    scores = ops.reshape(ops.stop_gradient(y_pred), (-1, width))
    if width > 1:
        return ops.cast(ops.argmax(scores, axis=1), COUNT)
    sigmoid = head is not None and head.activation is keras.activations.sigmoid
    return ops.cast(scores[:, 0] > (0.5 if sigmoid else 0.0), COUNT)
