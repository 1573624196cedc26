"""Where a single score decides: at 0 for a logit, at 1/2 behind a sigmoid, wherever that stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .graph import SAME, SHAPES, Graph, Value


def threshold(graph: Graph, scores: int) -> float:
    """Return above which a single score decides for class 1.

    That is what the maps of single numbers after a sigmoid make of 1/2, or those after a logit of 0.
    Shifts and factors alone leave a logit a logit.
    """
    steps: list[Callable[[float], float]] = []
    number, height, bends = scores, 0.0, False
    while True:
        value = graph[number]
        if value.operation == "logistic" or _is_written_sigmoid(graph, value):
            height, bends = 0.5, True
            break
        step = _scalar_step(graph, value)
        if step is None:
            break
        apply, number = step
        steps.append(apply)
        bends |= value.operation in _BENDING
    for apply in reversed(steps):
        height = apply(height)
    return height if bends else 0.0


def _scalar_step(graph: Graph, value: Value) -> tuple[Callable[[float], float], int] | None:
    """Return what a map of single numbers does, and to which value."""
    name, inputs = value.operation, value.inputs
    if name in SAME | {"reshape", "squeeze", "slice", "transpose"} or (
        name == "broadcast_in_dim" and math.prod(graph[inputs[0]].shape) == math.prod(value.shape)
    ):
        return (lambda x: x), inputs[0]
    if name.startswith("reduce_") and math.prod(graph[inputs[0]].shape) == math.prod(value.shape):
        return (lambda x: x), inputs[0]
    if name in _UNARY:
        return _UNARY[name], inputs[0]
    if name == "clamp":
        low, high = _scalar(graph, inputs[0]), _scalar(graph, inputs[2])
        if low is None or high is None:
            return None
        return (lambda x: min(max(x, low), high)), inputs[1]
    constants = [_scalar(graph, i) for i in inputs]
    if name not in _BINARY or len(constants) != 2 or sum(c is None for c in constants) != 1:
        return None
    left, right = constants
    apply = _BINARY[name]
    if left is None:
        return (lambda x: apply(x, right)), inputs[0]
    return (lambda x: apply(left, x)), inputs[1]


_UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda x: -x,
    "log": lambda x: math.log(x) if x > 0 else -math.inf,
    "log1p": lambda x: math.log1p(x) if x > -1 else -math.inf,
    "exp": math.exp,
    "tanh": math.tanh,
    "erf": math.erf,
}
_BENDING = {*_UNARY, "max", "min", "clamp"} - {"neg"}
_BINARY: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
    "min": min,
}


def _scalar(graph: Graph, number: int) -> float | None:
    """Return the one number that a constant holds, broadcast or not."""
    value = graph[number]
    while value.operation in SAME | SHAPES:
        value = graph[value.inputs[0]]
    if value.constant is None:
        return None
    array = np.asarray(value.constant)
    if not array.size or array.dtype.kind not in "fiu" or (array != array.reshape(-1)[0]).any():
        return None
    return float(array.reshape(-1)[0])


def _is_written_sigmoid(graph: Graph, value: Value) -> bool:
    """Whether this is 1 / (1 + exp(...))."""
    if value.operation != "div" or _scalar(graph, value.inputs[0]) != 1.0:
        return False
    below = graph[value.inputs[1]]
    if below.operation != "add":
        return False
    rest = [i for i in below.inputs if _scalar(graph, i) != 1.0]
    return len(rest) == 1 and graph[rest[0]].operation == "exp"
