"""Parts of a traced forward pass, run again on rows of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from .traced_tensors import TracedTensor

_ROWS, _POSITIONS = 2, 5  # where a size is not known
_MAXIMA = ("MaxPool", "Max", "Amax")  # of positions: no average of scores


def after(layer: Any, tail: Sequence[TracedTensor], row: Any) -> np.ndarray[Any, Any]:
    """Return what becomes of a row of the head's output, before its activation, at every position."""
    first, *following = tail
    tensor = activated(layer, filled(first, row))
    with keras.StatelessScope():
        for value in following:
            if any(kind in type(value.operation).__name__ for kind in _MAXIMA):
                raise ValueError("the largest of several positions is none of them")
            tensor = run_operation(value, [tensor])
    return on_host(tensor)


def activated(layer: Any, tensor: Any) -> Any:
    layer = getattr(layer, "layer", layer)  # of a wrapper
    activation = getattr(layer, "activation", None)
    return tensor if activation is None else activation(tensor)


def shape_of(value: TracedTensor) -> tuple[int, ...]:
    """Return the shape of a value in such a run."""
    rows, *sizes = value.shape
    known = [_POSITIONS if size is None else size for size in sizes]
    return (_ROWS if rows is None else rows, *known)


def filled(value: TracedTensor, row: Any) -> Any:
    """Return a tensor of a value's shape, with the same row everywhere or one for each position."""
    shape = shape_of(value)
    return ops.convert_to_tensor(np.broadcast_to(row, shape).copy(), dtype=value.dtype)


def run_operation(value: TracedTensor, inputs: Sequence[Any]) -> Any:
    """Run the operation that made a value on other inputs, which stand for its signals in order."""
    signals = [
        tensor for tensor, part in zip(value.tensors, value.inputs, strict=True) if part.has_signal
    ]
    by_tensor = {id(tensor): inputs[min(n, len(inputs) - 1)] for n, tensor in enumerate(signals)}
    args, kwargs = value.arguments.fill_in(by_tensor)
    return value.operation(*args, **kwargs)


def on_host(variable: Any) -> np.ndarray[Any, Any]:
    """Return a tensor as NumPy's, in float64."""
    if isinstance(variable, np.ndarray):
        return variable.astype(np.float64)
    if keras.backend.standardize_dtype(variable.dtype) != "float64":
        variable = ops.cast(variable, "float32")  # NumPy has no bfloat16
    array: np.ndarray[Any, Any] = ops.convert_to_numpy(variable)
    return array.astype(np.float64)
