"""The head: the last map with weights whose output is the scores, or becomes them in the same order.

A single score decides at 0 where it is a logit, at 1/2 behind a sigmoid, wherever that stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from collapsemeter.adapter.network import single_threshold

from .graph import SAME, SHAPES, Graph
from .score_order import SELECTS

MAPS = ("dot_general", "conv_general_dilated")


@dataclass(frozen=True)
class LinearMap:
    """An output x W + b of a call; numbers are those of values of the graph."""

    features: int
    weight: int
    bias: int | None
    rows: bool  # whether the weight is (C, d), as an embedding's, and not (d, C)


def linear_map(graph: Graph, number: int, touched: Sequence[bool]) -> LinearMap | None:
    """Read a value as x W + b, where neither W nor b depends on the network's inputs."""
    bias = None
    while True:
        value = graph[number]
        if value.operation in SAME | {"reshape"}:
            number = value.inputs[0]
        elif value.operation == "add" and bias is None:
            data = [i for i in value.inputs if touched[i]]
            rest = [i for i in value.inputs if not touched[i]]
            if len(data) != 1:
                return None
            number, bias = data[0], rest[0]
        else:
            break
    if value.operation not in MAPS:
        return None
    x, weight = value.inputs[:2]
    if not touched[x]:
        x, weight = weight, x
    if not touched[x] or touched[weight]:
        return None
    of = _of_dot if value.operation == "dot_general" else _of_conv
    rows = of(graph, value, x, weight)
    if rows is None:
        return None
    classes = graph[weight].shape[-2 if rows else -1]
    if bias is not None and math.prod(graph[bias].shape) not in (1, classes):
        return None
    return LinearMap(x, weight, bias, rows)


def _of_dot(graph: Graph, value: Any, x: int, weight: int) -> bool | None:
    contracted, batched = value.params["dimension_numbers"]
    left = value.inputs[0] == x
    of_x, of_weight = contracted if left else contracted[::-1]
    shape = graph[x].shape
    if any(batched) or len(graph[weight].shape) != 2 or tuple(of_x) != (len(shape) - 1,):
        return None
    return tuple(of_weight) == (1,)


def _of_conv(graph: Graph, value: Any, x: int, weight: int) -> bool | None:
    """A convolution over single positions; its kernel (1, ..., d, C) is a matrix."""
    params, kernel = value.params, graph[weight].shape
    if value.inputs[0] != x:
        return None
    numbers = params["dimension_numbers"]
    spatial = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    plain = (
        set(spatial) <= {1} and params["feature_group_count"] == params["batch_group_count"] == 1
    )
    if not plain or any(low or high for low, high in params["padding"]):
        return None
    if tuple(numbers.rhs_spec[:2]) != (len(kernel) - 1, len(kernel) - 2):
        return None
    last = len(kernel) - 1
    return False if numbers.lhs_spec[1] == numbers.out_spec[1] == last else None


def same_tensor(graph: Graph, number: int) -> int:
    """Return the value of which this is just another name."""
    while graph[number].operation in SAME - {"convert_element_type", "reduce_precision"}:
        number = graph[number].inputs[0]
    return number


def same_entries(graph: Graph, number: int) -> int:
    """Return the value that this one holds, in another dtype or shape."""
    while graph[number].operation in SAME | {"reshape"}:
        number = graph[number].inputs[0]
    return number


def weights_of(graph: Graph, linear: LinearMap, leaves: Mapping[int, Any]) -> tuple[Any, Any]:
    """Return weight (C, d) and bias (C,), computed from the network's variables."""
    weight = _evaluated(graph, linear.weight, leaves)
    weight = weight.reshape(weight.shape[-2:])
    weight = weight if linear.rows else weight.T
    if linear.bias is None:
        return weight, None
    bias = _evaluated(graph, linear.bias, leaves).reshape(-1)
    return weight, np.broadcast_to(bias, len(weight))


def _evaluated(graph: Graph, number: int, leaves: Mapping[int, Any]) -> Any:
    shape = graph[number].shape
    number = leaf if (leaf := same_entries(graph, number)) in leaves else number
    array = graph.evaluated(number, leaves)
    # In the dtype that it is kept in, and not in one that the network computes in.
    return np.asarray(jax.device_get(array)).astype(np.float64).reshape(shape)


def threshold(graph: Graph, logits: Sequence[int], scores: int) -> float:
    """Return above which a single score decides for class 1.

    It is 0, too, where what follows the logits cannot be computed without the network's inputs or weights.
    """
    logits = _with_parts(graph, logits)

    def score(logit: float) -> float:
        given = {n: jnp.full(graph[n].shape, logit, graph[n].dtype) for n in logits}
        return float(jnp.ravel(graph.evaluated(scores, given))[0])

    if not logits:
        return 0.0
    try:
        with jax.ensure_compile_time_eval():
            return single_threshold(score)
    except (AttributeError, KeyError):  # an input or a weight has no value here
        return 0.0


def _with_parts(graph: Graph, logits: Sequence[int]) -> list[int]:
    """Return the logits and what holds some of them: at which positions may depend on the inputs."""
    parts = set(logits)
    for number, value in enumerate(graph.values):
        if value.operation in SAME | SHAPES | SELECTS and value.inputs[0] in parts:
            parts.add(number)
    return sorted(parts)
