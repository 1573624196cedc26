"""The points that a network may be watched at: layers whose output every path from inputs to scores passes."""

from collections.abc import Sequence

from collapsemeter.adapter.cut_points import cut_points

from .graph import SAME, Graph
from .head import MAPS, LinearCall, behind_the_last_map, same_tensor
from .marks import Call, read_mark
from .score_order import keeps_order
from .trace import Forward

_PASSES_ON = "passes its input on"
_PASSES = SAME | {"reshape", "squeeze", "transpose", "pad", "broadcast_in_dim", "rev"}


def chain(forward: Forward, touched: Sequence[bool]) -> list[int]:
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


def points_of(
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
    chosen, near = [], behind_the_last_map(graph, forward.scores)
    for (call, _), following in zip(points, [*points[1:], None][: len(points)], strict=True):
        if following is not None and _is_of_its_run(forward, call, following[1], end):
            skipped.setdefault(call.layer, f"{following[0].layer} ends what it begins")
        elif width is None or not (
            same_tensor(graph, call.output) == end
            or (call.output in near and keeps_order(graph, call.output, forward.scores))
        ):
            chosen.append(call.layer)
    return list(dict.fromkeys(chosen)), {k: why for k, why in skipped.items() if k not in chosen}


def inputs_of(forward: Forward, calls: Sequence[Call], head: LinearCall) -> dict[str, str]:
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
