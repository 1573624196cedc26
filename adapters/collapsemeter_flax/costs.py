"""What counting costs beside a training step, in operations of matrix products."""

from __future__ import annotations

import math

from .graph import Graph, Value
from .heads import MAPS
from .state import StateSpec

BACKWARD = 3  # a step takes about three times the operations of its forward
SHARE = 0.05


def products_note(graph: Graph, spec: StateSpec, rows: int) -> str:
    """Say what share of a step the products X'X are, and how often to count for one of at most 5 %."""
    step = BACKWARD * sum(_operations(graph, value) for value in graph.values)
    classes = spec.settings.num_classes
    times = {"class": classes, "pooled": 1, "sketch": 0, "trace": 0}
    counted = sum(
        2 * rows * width**2 * times[held.kind]
        for width, held in zip(spec.widths, spec.holdings, strict=True)
    )
    if not step or not counted:
        return ""
    share = counted / step
    text = f"time: products X'X are {100 * share:.2g} % of a step's operations"
    if share <= SHARE:
        return text
    every = math.ceil(share / SHARE)
    return f"{text}; when=step % {every} == 0 brings them under {100 * SHARE:.0f} %"


def _operations(graph: Graph, value: Value) -> int:
    if value.operation not in MAPS:
        return 0
    shape = graph[value.inputs[0]].shape
    numbers = value.params["dimension_numbers"]
    if value.operation == "dot_general":
        terms: int = math.prod(shape[axis] for axis in numbers[0][0])
    else:
        kernel = graph[value.inputs[1]].shape
        outputs: int = kernel[numbers.rhs_spec[0]]
        terms = math.prod(kernel) // outputs
    return 2 * math.prod(value.shape) * terms
