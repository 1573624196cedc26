"""The operations of the network's own products in a step, to compare counting with."""

import math

from collapsemeter.adapter import costs

from .graph import Graph, Value
from .head import MAPS
from .state import StateSpec


def products_note(graph: Graph, spec: StateSpec, rows: int) -> str:
    """Say what share of a step the products X'X are, and how often to count for one of at most 5 %."""
    forward = sum(_operations(graph, value) for value in graph.values)
    layers = zip(spec.widths, spec.holdings, strict=True)
    classes = spec.settings.num_classes
    counted = costs.product_operations(layers, rows, class_products=classes)
    return costs.products_note(forward, counted, "when=step % {} == 0")


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
