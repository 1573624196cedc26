"""Labels and decisions as a compiled step has them: tensors whose values nobody may look at."""

from collections.abc import Hashable, Mapping
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask  # JAX has it elsewhere than the tensor

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.labels import check_dtype, coded

from .operations import COUNT, Tensor, dtype_of
from .outputs import of_output


def given_labels(x: Any, y: Any, labels: Any, output: Hashable = None) -> Any:
    """Return the labels among what a step was given: those that ``labels=`` names, or of the output's target."""
    if callable(labels):
        return labels(x, y)
    for place in (y, x):
        if labels is not None and isinstance(place, Mapping) and labels in place:
            return place[labels]
    if isinstance(y, Mapping | list | tuple) and len(y) == 1:
        return next(iter(y.values())) if isinstance(y, Mapping) else y[0]
    target = of_output(y, output)
    if target is None:
        what = "no y" if y is None else f"y as a {type(y).__name__}"
        keys = f" with {', '.join(map(repr, y))}" if isinstance(y, Mapping) else ""
        raise ValueError(
            f"the step got {what}{keys}: say where the labels are with labels=, a key or a "
            "callable (x, y) -> labels"
        )
    return target


def class_labels(y: Tensor, y_pred: Tensor, settings: Settings) -> Tensor:
    """Return integer labels, (B,) or (B, T, ...), see `collapsemeter.stats.labels.coded`.

    One-hot rows have the shape of the scores.
    """
    y = ops.stop_gradient(ops.convert_to_tensor(y))
    num_classes = settings.num_classes
    axes, width = len(y.shape), y.shape[-1] if len(y.shape) else None
    scores = len(y_pred.shape)
    one_hot = axes == scores and width == num_classes == y_pred.shape[-1]
    if one_hot:
        if dtype_of(y) == "bool":
            y = ops.cast(y, "int32")  # TensorFlow compares no boolean with a number
    else:
        if axes == scores and width == 1:
            y = ops.squeeze(y, axis=-1)
        elif axes != scores - 1:
            raise ValueError(
                f"the targets have shape {tuple(y.shape)} and the scores {tuple(y_pred.shape)}: pass "
                "integer classes or one-hot rows, or say where the labels are with labels="
            )
        check_dtype(dtype_of(y), tuple(y.shape), num_classes)
    return coded(
        y, num_classes, settings.ignore_index, KERAS_LABELS, one_hot=one_hot, mixed=settings.mixed
    )


class KerasLabels:
    """Keras' operations for `collapsemeter.stats.labels.coded`."""

    def integers(self, x: Tensor) -> Tensor:
        return ops.cast(x, "int32")

    def keeps(self, x: Tensor) -> bool:
        return dtype_of(x) in ("bool", "int8", "int16", "int32", "uint8", "uint16")

    def same(self, whole: Tensor, x: Tensor) -> Tensor:
        same = ops.cast(whole, x.dtype) == x  # a number beyond 32 bits wraps
        return same & (whole >= 0) if dtype_of(x).startswith("uint") else same

    def is_float(self, x: Tensor) -> bool:
        return bool(keras.backend.is_float_dtype(dtype_of(x)))

    def where(self, condition: Tensor, a: Tensor | int, b: Tensor | int) -> Tensor:
        return ops.where(condition, a, b)

    def count_last(self, flags: Tensor) -> Tensor:
        return ops.sum(ops.cast(flags, "int32"), axis=-1)

    def place_last(self, flags: Tensor) -> Tensor:
        return ops.cast(ops.argmax(ops.cast(flags, "int32"), axis=-1), "int32")

    def max_last(self, x: Tensor) -> Tensor:
        return ops.max(x, axis=-1, keepdims=True)


KERAS_LABELS = KerasLabels()


def without_masked(labels: Tensor, y_pred: Tensor, sample_weight: Any, ignore_index: int) -> Tensor:
    """Ignore what the loss ignores: positions that Keras masks, and rows of weight zero."""
    mask = get_keras_mask(y_pred)
    if mask is not None and len(mask.shape) == len(labels.shape):
        labels = ops.where(ops.cast(mask, "bool"), labels, ignore_index)
    if sample_weight is not None and ops.is_tensor(sample_weight):
        weight = sample_weight
        if len(weight.shape) == len(labels.shape) + 1 and weight.shape[-1] == 1:
            weight = ops.squeeze(weight, axis=-1)
        if len(weight.shape) == len(labels.shape):
            labels = ops.where(weight == 0, ignore_index, labels)
    return labels


def decided_classes(y_pred: Tensor, threshold: float) -> Tensor:
    """Return the class that the network decides on, (N,); a single score decides for class 1 above the threshold."""
    width = int(y_pred.shape[-1])
    scores = ops.reshape(ops.stop_gradient(y_pred), (-1, width))
    if width > 1:
        return ops.cast(ops.argmax(scores, axis=1), COUNT)
    return ops.cast(scores[:, 0] > threshold, COUNT)
