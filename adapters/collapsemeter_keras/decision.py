"""What makes the scores: the layer, and what becomes of its output until it is the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from collapsemeter.adapter.network import single_threshold

from .graph import Graph, TracedTensor, has_weights
from .untouched import eagerly

_BEYOND = 64  # operations after a head, at most
_MAXIMA = ("MaxPool", "Max", "Amax")  # of positions: no average of scores


class Decision(NamedTuple):
    """What makes the scores, and how they decide."""

    head: str | None
    no_head: str
    tail: tuple[TracedTensor, ...]  # from the head's output to the scores
    threshold: float | None  # None: what follows the last logit is not known


def decision_of(graph: Graph, parts: Mapping[str, Any], scores: TracedTensor) -> Decision:
    """Walk back from the scores to the layer that makes them.

    What lies between must keep the order of the scores in every row: it is run on rows that would tell.
    """
    with eagerly():
        return _decision(graph, parts, scores)


def _decision(graph: Graph, parts: Mapping[str, Any], scores: TracedTensor) -> Decision:
    width = scores.shape[-1] if len(scores.shape) > 1 else 1
    threshold = _threshold(scores, parts) if width == 1 else 0.0
    tail: list[TracedTensor] = []
    value = scores
    while len(tail) < _BEYOND:
        tail.insert(0, value)
        name = _head_at(value, parts, width)
        if name is not None:
            if _keeps_order(parts[name], tail):
                return Decision(name, "", tuple(tail), threshold)
            return Decision(None, "scores_are_not_the_heads", tuple(tail), threshold)
        before = {part for part in value.inputs if part.has_signal}
        if len(before) > 1:
            return Decision(None, "no_single_head", tuple(tail), threshold)
        if not before or has_weights(value.operation):
            del tail[0]  # a layer of its own
            break
        value = before.pop()
    return Decision(None, "no_head", tuple(tail), threshold)


def _head_at(value: TracedTensor, parts: Mapping[str, Any], width: int | None) -> str | None:
    """Name the innermost layer with a linear map to so many outputs whose output a value is."""
    if value.shape[-1:] != (width,):
        return None
    for name in value.layers:
        weights = linear_map(parts[name])
        if weights is not None and width in weights[0].shape:
            return name
    return None


# Weights


def linear_map(part: Any) -> tuple[Any, Any] | None:
    """Return kernel and bias (or None) of a layer that is one linear map, of (..., d, C) or (C, d); else None."""
    if isinstance(part, keras.layers.TimeDistributed | keras.layers.SpectralNormalization):
        return linear_map(part.layer)
    if not isinstance(part, keras.layers.Layer) or not part.built:
        return None
    if isinstance(part, keras.layers.Dense | keras.layers.EinsumDense):
        return _plain(part.kernel, part.bias)
    if _is_pointwise(part):
        return _plain(part.kernel, part.bias if part.use_bias else None)
    if type(part).__module__.startswith("keras."):
        return None
    variables = [*part._trainable_variables, *part._non_trainable_variables]
    tables = [variable for variable in variables if len(variable.shape) == 2]
    vectors = [variable for variable in variables if len(variable.shape) == 1]
    if len(tables) != 1:
        return None
    return tables[0], vectors[0] if len(vectors) == 1 else None


def _plain(kernel: Any, bias: Any) -> tuple[Any, Any] | None:
    spatial, fits = kernel.shape[:-2], bias is None or len(bias.shape) == 1
    return (kernel, bias) if fits and len(kernel.shape) >= 2 and set(spatial) <= {1} else None


def _is_pointwise(part: Any) -> bool:
    """Whether a layer is a convolution of single positions."""
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return isinstance(part, kinds) and part.groups == 1


# What follows the head


def _keeps_order(layer: Any, tail: Sequence[TracedTensor]) -> bool:
    """Whether scores that are apart, and scores that are equal, come out so."""
    width = tail[0].shape[-1]
    assert width is not None
    if width == 1:
        rows = [np.full(1, -3.0), np.full(1, 3.0)]
    else:
        apart = np.linspace(-2.0, 2.0, width)
        rows = [apart, apart[::-1], np.full(width, 1.5), np.full(width, -0.5)]
    try:
        results = [_after(layer, tail, row) for row in rows]
    except Exception:  # an operation that cannot be run by itself
        return False
    if width == 1:
        return bool((results[0] <= results[1]).all())
    if any(result.shape[-1:] != (width,) for result in results):
        return False
    flat = [result.reshape(-1, width) for result in results]
    up, down, *level = flat
    tolerance = 1e-5 * max(float(np.abs(part).max()) for part in level)
    return bool(
        (np.diff(up) >= 0).all()
        and (np.diff(down) <= 0).all()
        and all((np.ptp(part, axis=1) <= tolerance).all() for part in level)
    )


def _after(layer: Any, tail: Sequence[TracedTensor], row: Any) -> np.ndarray[Any, Any]:
    """Return what becomes of a row of the head's output, before its activation, at every position."""
    first, *rest = tail
    tensor = _activated(layer, _filled(first, row))
    with keras.StatelessScope():
        for value in rest:
            if any(kind in type(value.operation).__name__ for kind in _MAXIMA):
                raise ValueError("the largest of several positions is none of them")
            tensor = _run(value, [tensor])
    return on_host(tensor)


def _activated(layer: Any, tensor: Any) -> Any:
    layer = getattr(layer, "layer", layer)  # of a wrapper
    activation = getattr(layer, "activation", None)
    return tensor if activation is None else activation(tensor)


def _filled(value: TracedTensor, row: Any) -> Any:
    """Return a tensor of a value's shape with the same row everywhere."""
    shape = tuple(2 if size is None else size for size in value.shape)
    return ops.convert_to_tensor(np.broadcast_to(row, shape).copy(), dtype=value.dtype)


def _run(value: TracedTensor, inputs: Sequence[Any]) -> Any:
    """Run the operation that made a value on other inputs, which stand for its signals in order."""
    signals = [
        tensor for tensor, part in zip(value.tensors, value.inputs, strict=True) if part.has_signal
    ]
    given = {id(tensor): inputs[min(n, len(inputs) - 1)] for n, tensor in enumerate(signals)}
    args, kwargs = value.arguments.fill_in(given)
    return value.operation(*args, **kwargs)


def _threshold(scores: TracedTensor, parts: Mapping[str, Any]) -> float | None:
    """Return where a single score decides; None where an operation cannot be run by itself."""

    def become(value: TracedTensor, logit: float, left: int = _BEYOND) -> Any:
        name = _head_at(value, parts, 1)
        if name is not None:
            return _activated(parts[name], _filled(value, logit))
        before = [part for part in value.inputs if part.has_signal]
        if not before or not left or has_weights(value.operation):
            return _filled(value, logit)
        return _run(value, [become(part, logit, left - 1) for part in before])

    try:
        with keras.StatelessScope():
            return single_threshold(lambda logit: float(on_host(become(scores, logit)).ravel()[0]))
    except Exception:  # an operation that cannot be run by itself
        return None


def on_host(variable: Any) -> np.ndarray[Any, Any]:
    """Return a tensor as NumPy's, in float64."""
    if isinstance(variable, np.ndarray):
        return variable.astype(np.float64)
    if keras.backend.standardize_dtype(variable.dtype) != "float64":
        variable = ops.cast(variable, "float32")  # NumPy has no bfloat16
    array: np.ndarray[Any, Any] = ops.convert_to_numpy(variable)
    return array.astype(np.float64)
