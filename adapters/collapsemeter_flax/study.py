"""What one abstract forward tells of a network: its scores, its head, the order and choice of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from collapsemeter.adapter.cut_points import cut_points
from collapsemeter.adapter.network import Network

from .graph import SAME, Graph
from .head import MAPS, LinearMap, linear_map, same_entries, same_tensor, threshold
from .marks import Mark, read_mark
from .score_order import keeps_order, order_kept
from .trace import Forward

_PASSES_ON = "passes its input on"
_PASSES = SAME | {"reshape", "squeeze", "transpose", "pad", "broadcast_in_dim", "rev"}


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module: the values that it was given and gave, where they could be named."""

    layer: str
    number: int
    output: int


@dataclass(frozen=True, eq=False)
class LinearCall:
    """A call whose output is x W + b of its first argument."""

    call: Call
    linear: LinearMap


@dataclass(frozen=True, eq=False)
class Study:
    """What one abstract forward told."""

    forward: Forward
    network: Network
    depth: tuple[str, ...]  # every call, "layer#0", in the order in which data reach it
    linear: Mapping[str, LinearCall]  # by layer, its last call whose output is x W + b
    head_call: int | None  # which call of the head makes the scores
    selects: bool = False  # the scores are those that the head gave at some positions


def study(forward: Forward, has_scores: bool = True) -> Study:
    """Read order, cut points, head and threshold off the data flow."""
    graph, scores = forward.graph, forward.scores
    touched = graph.depending_on(list(forward.inputs))
    order, depth, calls = _calls(graph)
    linear = _linear_calls(graph, calls, touched)
    head, no_head, last = None, "no_head", set[str]()
    width = None
    if has_scores and forward.place:
        width = _width(graph, scores, linear)
        head, no_head, last = _head(forward, linear, width)
    end = scores if head is None else head.linear.features
    points, skipped = _points(forward, calls, _chain(forward, touched), end, last, width)
    if head is not None:
        skipped |= _inputs_of(forward, calls, head)
    network = Network(
        order=tuple(order),
        points=tuple(points),
        head=None if head is None else head.call.layer,
        no_head=no_head,
        width=width,
        threshold=_threshold(graph, scores, linear) if width == 1 else 0.0,
        place=forward.place,
        skipped=skipped,
    )
    by_layer = {found.call.layer: found for found in linear}
    number = None if head is None else head.call.number
    kept = None if head is None else order_kept(graph, head.call.output, scores)
    selects = kept is not None and kept.selects
    return Study(forward, network, tuple(depth), by_layer, number, selects)


def _calls(graph: Graph) -> tuple[list[str], list[str], list[Call]]:
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


def _chain(forward: Forward, touched: Sequence[bool]) -> list[int]:
    """Return the values that every path from the inputs to the scores passes, in order."""
    graph = forward.graph
    looked_up = {
        number
        for number, value in enumerate(graph.values)
        if value.operation == "gather" and touched[number] and not touched[value.inputs[0]]
    }
    floats = {
        number
        for number, name in forward.inputs.items()
        if graph[number].is_float and "mask" not in name
    }
    crossings = {
        number
        for number, value in enumerate(graph.values)
        if touched[number] and value.is_float and not graph.float_inputs(number)
    }
    for sources in (floats | looked_up, crossings):
        points = cut_points(forward.scores, graph.float_inputs, sources.__contains__)
        if points:
            return points
    return []


def _linear_calls(graph: Graph, calls: Sequence[Call], touched: Sequence[bool]) -> list[LinearCall]:
    """Return the calls whose output is x W + b of their own first argument."""
    given: dict[str, set[int]] = {}
    for number, value in enumerate(graph.values):
        mark = read_mark(value.params["name"]) if value.operation == "name" else None
        if mark is not None and mark.kind == "in":
            given.setdefault(mark.layer, set()).add(same_entries(graph, number))
    linear = []
    for call in calls:
        found = linear_map(graph, call.output, touched)
        if found is not None and same_entries(graph, found.features) in given.get(call.layer, ()):
            linear.append(LinearCall(call, found))
    return linear


def _width(graph: Graph, scores: int, linear: Sequence[LinearCall]) -> int:
    """Return how many scores a row has: (N,) is one a row, but where maps run on single rows, as in a vmap."""
    shape = graph[scores].shape
    single = any(len(graph[found.call.output].shape) == 1 for found in linear)
    return shape[-1] if len(shape) > 1 or (single and shape) else 1


def _head(
    forward: Forward, linear: Sequence[LinearCall], width: int
) -> tuple[LinearCall | None, str, set[str]]:
    """Return the last linear map whose output becomes the scores in the same order, or why none does.

    The names are those of the layers that only make scores, so that they are none of the features.
    """
    graph, scores = forward.graph, forward.scores
    near = _behind_the_last_map(graph, scores)
    fitting = [
        found
        for found in linear
        if found.call.output in near and graph[found.call.output].shape[-1:] == (width,)
    ]
    for found in reversed(fitting):
        if keeps_order(graph, found.call.output, scores):
            tensor = same_tensor(graph, found.call.output)
            inner = [
                other
                for other in fitting
                if same_tensor(graph, other.call.output) == tensor
                and forward.parts[other.call.layer].gets_out
            ]
            names = {other.call.layer for other in inner} | {found.call.layer}
            # Of a module and a wrapper around it, the module that holds the weight.
            head = max(inner, key=lambda other: other.call.layer.count("."), default=None)
            return head, "no_head", names
    last = {found.call.layer for found in fitting}
    if len(last) > 1:
        return None, "no_single_head", last
    return None, "scores_are_not_the_heads" if last else "no_head", last


def _threshold(graph: Graph, scores: int, linear: Sequence[LinearCall]) -> float:
    near = _behind_the_last_map(graph, scores)
    logits = [found.call.output for found in linear if found.call.output in near]
    return threshold(graph, [n for n in logits if graph[n].shape[-1:] == (1,)], scores)


def _behind_the_last_map(graph: Graph, scores: int) -> set[int]:
    """Return the values that no further map with weights separates from the scores."""
    near, left = {scores}, [scores]
    while left:
        number = left.pop()
        if graph[number].operation not in MAPS:
            new = [i for i in graph.float_inputs(number) if i not in near]
            near.update(new)
            left += new
    return near


def _points(
    forward: Forward,
    calls: Sequence[Call],
    chain: Sequence[int],
    end: int,
    last: set[str],
    width: int | None,
) -> tuple[list[str], dict[str, str]]:
    """Return the layers whose output is a cut point before the head, thinned, in the order of the data.

    Return also why other cut points are not among them.
    """
    graph, on_chain, end = forward.graph, set(chain), same_tensor(forward.graph, end)
    skipped: dict[str, str] = {}
    by_tensor: dict[int, list[Call]] = {}
    for call in calls:
        if _only_passes_on(forward, call):
            skipped[call.layer] = _PASSES_ON
        elif call.output in on_chain and call.layer not in last:
            tensor = same_tensor(graph, call.output)
            if tensor <= end:
                by_tensor.setdefault(tensor, []).append(call)
    points: list[tuple[Call, Call]] = []  # by the outermost name and the innermost one
    for _, named in sorted(by_tensor.items()):
        named.sort(key=lambda call: call.layer.count("."))
        if forward.parts[named[0].layer].gets_out:
            points.append((named[0], named[-1]))
    chosen, near = [], _behind_the_last_map(graph, forward.scores)
    for (call, _), following in zip(points, [*points[1:], None][: len(points)], strict=True):
        if following is not None and _is_of_its_run(forward, call, following[1], end):
            skipped.setdefault(call.layer, f"{following[0].layer} ends what it begins")
        elif width is None or not (
            same_tensor(graph, call.output) == end
            or (call.output in near and keeps_order(graph, call.output, forward.scores))
        ):
            chosen.append(call.layer)
    return list(dict.fromkeys(chosen)), {k: why for k, why in skipped.items() if k not in chosen}


def _inputs_of(forward: Forward, calls: Sequence[Call], head: LinearCall) -> dict[str, str]:
    """Say of the modules that give just the head's input that they do, and of what is inside them."""
    graph = forward.graph
    tensor = same_tensor(graph, head.linear.features)
    reasons = {
        call.layer: f"its output is the input of {head.call.layer}"
        for call in calls
        if same_tensor(graph, call.output) == tensor
    }
    inside = {
        call.layer: f"inside {layer}: {reason}"
        for call in calls
        for layer, reason in reasons.items()
        if call.layer.startswith(layer + ".")
    }
    return inside | reasons


def _only_passes_on(forward: Forward, call: Call) -> bool:
    part = forward.parts.get(call.layer)
    return part is None or part.is_embedding or part.is_dropout or _passes_on(forward.graph, call)


def _passes_on(graph: Graph, call: Call) -> bool:
    """Whether a module only gave its input in another shape."""
    number = graph[call.output].inputs[0]
    while graph[number].operation in _PASSES:
        value = graph[number]
        mark = read_mark(value.params["name"]) if value.operation == "name" else None
        if mark is not None and (mark.kind, mark.layer) == ("in", call.layer):
            return True
        number = value.inputs[0]
    return False


def _is_of_its_run(forward: Forward, call: Call, following: Call, end: int) -> bool:
    """Whether the next point ends what this one begins: convolution, norm, activation."""
    graph = forward.graph
    needed = graph.ancestors(following.output)
    between = (
        graph[number].operation in MAPS
        for number in range(call.output + 1, following.output)
        if number in needed
    )
    if any(between):
        return False
    if call.layer.startswith(following.layer + "."):
        return True
    is_pool = same_tensor(graph, following.output) == end
    return forward.parts[call.layer].is_elementary and not is_pool
