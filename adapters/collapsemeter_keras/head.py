"""The head: what makes the scores, what becomes of its output until then, and its weights on the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from collapsemeter import Head
from collapsemeter.adapter.network import single_threshold
from collapsemeter.adapter.tally import classifier

from .graph import Graph, has_weights
from .linear import is_affine, linear_map
from .positions import Position, picked_position
from .running import activated, after, filled, on_host, run_operation
from .traced_tensors import TracedTensor
from .untouched import eagerly

_BEYOND = 64  # operations after a head, at most


class Decision(NamedTuple):
    """The map that makes the scores, and how scores decide."""

    head: str | None
    no_head: str
    tail: tuple[TracedTensor, ...]  # from the head's output to the scores
    threshold: float | None  # None: what follows the last logit is not known
    position: Position | None = None  # of the head's output that becomes the scores, if it is one


def decision_of(graph: Graph, parts: Mapping[str, Any], scores: TracedTensor) -> Decision:
    """Walk back from the scores to the layer that makes them.

    What lies between must keep the order of the scores in every row: it is run on rows that would tell.
    """
    with eagerly():
        return _decision(graph, parts, scores)


def _decision(graph: Graph, parts: Mapping[str, Any], scores: TracedTensor) -> Decision:
    width = scores.shape[-1] if len(scores.shape) > 1 else 1
    threshold = _threshold(graph, scores, parts) if width == 1 else 0.0
    tail: list[TracedTensor] = []
    value = scores
    while len(tail) < _BEYOND:
        tail.insert(0, value)
        name = _head_at(graph, value, parts, width)
        if name is not None:
            if _keeps_order(parts[name], tail):
                position = picked_position(parts[name], tail)
                return Decision(name, "", tuple(tail), threshold, position)
            return Decision(None, "scores_are_not_the_heads", tuple(tail), threshold)
        before = {part for part in value.inputs if part.has_signal}
        if len(before) > 1:
            return Decision(None, "no_single_head", tuple(tail), threshold)
        if not before or has_weights(value.operation):
            del tail[0]  # a layer of its own
            break
        value = before.pop()
    return Decision(None, "no_head", tuple(tail), threshold)


def _head_at(
    graph: Graph, value: TracedTensor, parts: Mapping[str, Any], width: int | None
) -> str | None:
    """Name the innermost layer with a linear map to so many outputs whose output a value is."""
    if value.shape[-1:] != (width,):
        return None
    for name in value.layers:
        weights = linear_map(parts[name])
        if weights is None or width not in weights[0].shape:
            continue
        if is_affine(parts[name], value, graph.given.get(name), graph.arguments.get(name)):
            return name
    return None


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
        results = [after(layer, tail, row) for row in rows]
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


def _threshold(graph: Graph, scores: TracedTensor, parts: Mapping[str, Any]) -> float | None:
    """Return where a single score decides; None where an operation cannot be run by itself."""

    def become(value: TracedTensor, logit: float, left: int = _BEYOND) -> Any:
        name = _head_at(graph, value, parts, 1)
        if name is not None:
            return activated(parts[name], filled(value, logit))
        before = [part for part in value.inputs if part.has_signal]
        if not before or not left or has_weights(value.operation):
            return filled(value, logit)
        return run_operation(value, [become(part, logit, left - 1) for part in before])

    try:
        with keras.StatelessScope():
            return single_threshold(lambda logit: float(on_host(become(scores, logit)).ravel()[0]))
    except Exception:  # an operation that cannot be run by itself
        return None


# Its weights


def head_of(
    layer: Any, width: int | None = None, weights: Callable[[Any], Any] | None = None
) -> Head | None:
    """Return a head's weights on the host: those that a callable takes from it, or its linear map's."""
    if layer is None or not getattr(layer, "built", True):
        return None
    if weights is not None:
        read = weights(layer)
        if isinstance(read, Head):
            return read
        weight, bias = read if isinstance(read, tuple | list) else (read, None)
        return classifier(on_host(weight), None if bias is None else on_host(bias))
    linear = linear_map(layer)
    if linear is None:
        return None
    kernel, bias = linear
    if getattr(layer, "quantization_mode", None) == "int8":  # what its integers stand for
        kernel = ops.cast(kernel, "float32") / ops.cast(layer.kernel_scale, "float32")
    table = on_host(kernel).reshape(kernel.shape[-2:])
    if width not in (None, table.shape[1]) and width == table.shape[0]:
        table = table.T  # stored as (C, d)
    fits = bias is not None and len(bias.shape) == 1 and bias.shape[0] == table.shape[1]
    return classifier(table.T, on_host(bias) if fits else None)
