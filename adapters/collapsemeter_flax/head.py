"""The head: the last map with weights whose output is the scores, or becomes them in the same order.

A single score decides at 0 where it is a logit, at 1/2 behind a sigmoid, wherever that stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from collapsemeter.adapter.network import single_threshold

from .graph import SAME, SHAPES, Graph
from .marks import Call, read_mark
from .score_order import SELECTS, keeps_order

if TYPE_CHECKING:
    from .trace import Forward

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
            offsets = [i for i in value.inputs if not touched[i]]
            if len(data) != 1:
                return None
            number, bias = data[0], offsets[0]
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


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A call whose output is x W + b of its first argument."""

    call: Call
    linear: LinearMap


def linear_calls(graph: Graph, calls: Sequence[Call], touched: Sequence[bool]) -> list[LinearCall]:
    """Return the calls whose output is x W + b of their own first argument."""
    inputs: dict[str, set[int]] = {}
    for number, value in enumerate(graph.values):
        mark = read_mark(value.params["name"]) if value.operation == "name" else None
        if mark is not None and mark.kind == "in":
            inputs.setdefault(mark.layer, set()).add(same_entries(graph, number))
    linear = []
    for call in calls:
        affine = linear_map(graph, call.output, touched)
        if affine is not None and same_entries(graph, affine.features) in inputs.get(
            call.layer, ()
        ):
            linear.append(LinearCall(call, affine))
    return linear


def width_of_scores(graph: Graph, scores: int, linear: Sequence[LinearCall]) -> int:
    """Return how many scores a row has: (N,) is one a row, but where maps run on single rows, as in a vmap."""
    shape = graph[scores].shape
    single = any(len(graph[linear_call.call.output].shape) == 1 for linear_call in linear)
    return shape[-1] if len(shape) > 1 or (single and shape) else 1


def find_head(
    forward: Forward, linear: Sequence[LinearCall], width: int
) -> tuple[LinearCall | None, str, set[str]]:
    """Return the last linear map whose output becomes the scores in the same order, or why none does.

    The names are those of the layers that only make scores, so that they are none of the features.
    """
    graph, scores = forward.graph, forward.scores
    near = behind_the_last_map(graph, scores)
    fitting = [
        linear_call
        for linear_call in linear
        if linear_call.call.output in near and graph[linear_call.call.output].shape[-1:] == (width,)
    ]
    for linear_call in reversed(fitting):
        if keeps_order(graph, linear_call.call.output, scores):
            tensor = same_tensor(graph, linear_call.call.output)
            alike = [
                twin
                for twin in fitting
                if same_tensor(graph, twin.call.output) == tensor
                and forward.parts[twin.call.layer].gets_out
            ]
            names = {twin.call.layer for twin in alike} | {linear_call.call.layer}
            # Of a module and a wrapper around it, the module that holds the weight.
            head = max(alike, key=lambda twin: twin.call.layer.count("."), default=None)
            return head, "no_head", names
    last = {linear_call.call.layer for linear_call in fitting}
    if len(last) > 1:
        return None, "no_single_head", last
    return None, "scores_are_not_the_heads" if last else "no_head", last


def behind_the_last_map(graph: Graph, scores: int) -> set[int]:
    """Return the values that no further map with weights separates from the scores."""
    near, left = {scores}, [scores]
    while left:
        number = left.pop()
        if graph[number].operation not in MAPS:
            new = [i for i in graph.float_inputs(number) if i not in near]
            near.update(new)
            left += new
    return near


def threshold_of(graph: Graph, scores: int, linear: Sequence[LinearCall]) -> float:
    near = behind_the_last_map(graph, scores)
    logits = [linear_call.call.output for linear_call in linear if linear_call.call.output in near]
    return _threshold(graph, [n for n in logits if graph[n].shape[-1:] == (1,)], scores)


def _threshold(graph: Graph, logits: Sequence[int], scores: int) -> float:
    """Return above which a single score decides for class 1.

    It is 0, too, where what follows the logits cannot be computed without the network's inputs or weights.
    """
    logits = _with_parts(graph, logits)

    def score(logit: float) -> float:
        values = {n: jnp.full(graph[n].shape, logit, graph[n].dtype) for n in logits}
        return float(jnp.ravel(graph.evaluated(scores, values))[0])

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
