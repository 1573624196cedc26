"""Labels and decisions as a compiled step has them: tensors whose values nobody may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask  # JAX has it elsewhere than the tensor

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.labels import check_dtype, coded

from .operations import COUNT, Tensor


class Output(NamedTuple):
    """The scores among a model's outputs, and the key or position under which they are."""

    key: str | int | None
    scores: Tensor


def main_output(
    y_pred: Any, which: str | None, num_classes: int, names: Sequence[str] | None = None
) -> Output:
    """Return the scores among a model's outputs: those named, or the only ones of C classes.

    Parameters
    ----------
    y_pred : tensor, or mapping, list or tuple of tensors
    which : str, optional
        What ``labels=`` names.
    num_classes : int
    names : sequence of str, optional
        Of the outputs, where they come as a list.

    Raises
    ------
    ValueError
        If it cannot be told which they are.
    """
    if not isinstance(y_pred, Mapping | list | tuple):
        return Output(None, y_pred)
    keyed: dict[str | int, Tensor] = (
        dict(y_pred) if isinstance(y_pred, Mapping) else dict(enumerate(y_pred))
    )
    if which in keyed:
        return Output(which, keyed[which])
    if which is not None and which in (names or ()) and not isinstance(y_pred, Mapping):
        position = list(names or ()).index(which)
        return Output(position, keyed[position])
    widths = {num_classes, 1} if num_classes == 2 else {num_classes}
    fits = [
        key for key, scores in keyed.items() if len(scores.shape) and scores.shape[-1] in widths
    ]
    if len(fits) != 1:
        shapes = ", ".join(f"{key!r} of shape {tuple(v.shape)}" for key, v in keyed.items())
        raise ValueError(f"the model gives {shapes}: name the classifier's output with labels=")
    return Output(fits[0], keyed[fits[0]])


def of_output(part: Any, key: str | int | None) -> Any:
    """Return what belongs to an output: of several targets or weights that under its key.

    Examples
    --------
    >>> of_output({"a": 1, "b": 2}, "b"), of_output([1, 2], 0), of_output(3, None)
    (2, 1, 3)
    """
    if isinstance(part, Mapping):
        return part.get(key)
    if isinstance(part, list | tuple):
        return part[key] if isinstance(key, int) and key < len(part) else None
    return part


def given_labels(x: Any, y: Any, labels: Any, output: str | int | None = None) -> Any:
    """Return the labels among what a step was given.

    Parameters
    ----------
    x, y : inputs and targets of the step
    labels : None, str or callable
        Key of the labels among the targets (or the inputs), or ``labels(x, y)``.
    output : str or int, optional
        Where the scores are among the outputs, and the labels among as many targets.

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
    found = of_output(y, output)
    if found is None:
        what = "no y" if y is None else f"y as a {type(y).__name__}"
        keys = f" with {', '.join(map(repr, y))}" if isinstance(y, Mapping) else ""
        raise ValueError(
            f"the step got {what}{keys}: say where the labels are with labels=, a key or a "
            "callable (x, y) -> labels"
        )
    return found


def class_labels(y: Tensor, y_pred: Tensor, settings: Settings) -> Tensor:
    """Return integer labels, (B,) or (B, T, ...), whatever form the loss takes them in.

    Class numbers are whole numbers of any dtype. One-hot rows, which have the shape of the scores, name
    their class. A row that names no single class, such as a mixture of two, gets a code, and any other
    number that is not whole a label that is no class, see `collapsemeter.stats.labels.coded`.

    Raises
    ------
    ValueError
        If targets and scores do not fit each other, or the targets' dtype does not hold every class.
    """
    y = ops.stop_gradient(ops.convert_to_tensor(y))
    num_classes = settings.num_classes
    axes, width = len(y.shape), y.shape[-1] if len(y.shape) else None
    scores = len(y_pred.shape)
    one_hot = axes == scores and width == num_classes == y_pred.shape[-1]
    if one_hot:
        if keras.backend.standardize_dtype(y.dtype) == "bool":
            y = ops.cast(y, "int32")  # TensorFlow compares no boolean with a number
    else:
        if axes == scores and width == 1:
            y = ops.squeeze(y, axis=-1)
        elif axes != scores - 1:
            raise ValueError(
                f"the targets have shape {tuple(y.shape)} and the scores {tuple(y_pred.shape)}: pass "
                "integer classes or one-hot rows, or say where the labels are with labels="
            )
        check_dtype(keras.backend.standardize_dtype(y.dtype), tuple(y.shape), num_classes)
    return coded(y, num_classes, settings.ignore_index, KERAS_LABELS, one_hot=one_hot)


class KerasLabels:
    """Keras' operations for `collapsemeter.stats.labels.coded`."""

    def integers(self, x: Tensor) -> Tensor:
        return ops.cast(x, "int32")

    def keeps(self, x: Tensor) -> bool:
        dtype = keras.backend.standardize_dtype(x.dtype)
        return dtype in ("bool", "int8", "int16", "int32", "uint8", "uint16")

    def same(self, whole: Tensor, x: Tensor) -> Tensor:
        kept = ops.cast(whole, x.dtype) == x  # a number beyond 32 bits wraps
        if keras.backend.standardize_dtype(x.dtype).startswith("uint"):
            kept = kept & (whole >= 0)
        return kept

    def is_float(self, x: Tensor) -> bool:
        return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))

    def where(self, condition: Tensor, a: Tensor | int, b: Tensor | int) -> Tensor:
        return ops.where(condition, a, b)

    def count_last(self, flags: Tensor) -> Tensor:
        return ops.sum(ops.cast(flags, "int32"), axis=-1)

    def place_last(self, flags: Tensor) -> Tensor:
        return ops.cast(ops.argmax(ops.cast(flags, "int32"), axis=-1), "int32")


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
