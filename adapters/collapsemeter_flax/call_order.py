"""The order of layers and of their calls in depth: that of the data in the graph of an abstract forward."""

import math
from itertools import accumulate

from .graph import Graph
from .marks import Call, Mark, read_mark


def named_calls(graph: Graph) -> tuple[list[str], list[str], list[Call]]:
    """Return layers by first call, calls by the order of data, and the outputs that are named."""
    order: dict[str, None] = {}
    marks: list[tuple[Mark, int, object, int]] = []
    for number, value in enumerate(graph.values):
        names = value.hidden
        if value.operation == "name":
            names = ((value.params["name"], 1),)
        for name, times in names:
            if mark := read_mark(name):
                order.setdefault(mark.layer)
                if mark.kind == "out":
                    size = math.prod(value.shape) if value.operation == "name" else 0
                    times *= max(1, size // max(1, math.prod(mark.shape)))
                    marks.append((mark, times, value.equation or name, number))
    # Calls that a transformation makes alike are stacked in one array, and numbered after each other.
    sizes: dict[str, dict[object, int]] = {}
    for mark, times, equation, _ in marks:
        of_layer = sizes.setdefault(mark.layer, {})
        of_layer[equation] = of_layer.get(equation, 0) + times
    starts = {
        layer: dict(zip(of_layer, accumulate(of_layer.values(), initial=0), strict=False))
        for layer, of_layer in sizes.items()
    }
    depth, calls = [], []
    for mark, times, equation, number in marks:
        start = starts[mark.layer][equation]
        starts[mark.layer][equation] += times
        depth += [f"{mark.layer}#{start + i}" for i in range(times)]
        if graph[number].operation == "name":
            calls.append(Call(mark.layer, start, number))
    return list(order), depth, calls
