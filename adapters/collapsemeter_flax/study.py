"""Read scores, head, order and choice of layers off one abstract forward."""

from collections.abc import Mapping
from dataclasses import dataclass

from collapsemeter.adapter.network import Network, positions_first

from .call_order import named_calls
from .head import LinearCall, find_head, linear_calls, threshold_of, width_of_scores
from .points import chain, inputs_of, points_of
from .score_order import order_kept
from .trace import Forward


@dataclass(frozen=True, eq=False)
class Study:
    """The findings of one abstract forward."""

    forward: Forward
    network: Network
    depth: tuple[str, ...]  # every call, "layer#0", in the order in which data reach it
    linear: Mapping[str, LinearCall]  # by layer, its last call whose output is x W + b
    head_call: int | None  # which call of the head makes the scores
    selects: bool = False  # the scores are those that the head gave at some positions
    turned: frozenset[str] = frozenset()  # layers that give (T, B, d)


def study(forward: Forward, has_scores: bool = True) -> Study:
    """Read order, cut points, head and threshold off the data flow."""
    graph, scores = forward.graph, forward.scores
    touched = graph.depending_on(list(forward.inputs))
    order, depth, calls = named_calls(graph)
    linear = linear_calls(graph, calls, touched)
    head, no_head, last = None, "no_head", set[str]()
    width = None
    if has_scores and forward.place:
        width = width_of_scores(graph, scores, linear)
        head, no_head, last = find_head(forward, linear, width)
    end = scores if head is None else head.linear.features
    points, skipped = points_of(forward, calls, chain(forward, touched), end, last, width)
    if head is not None:
        skipped |= inputs_of(forward, calls, head)
    network = Network(
        order=tuple(order),
        points=tuple(points),
        head=None if head is None else head.call.layer,
        no_head=no_head,
        width=width,
        threshold=threshold_of(graph, scores, linear) if width == 1 else 0.0,
        place=forward.place,
        skipped=skipped,
    )
    by_layer = {called.call.layer: called for called in linear}
    number = None if head is None else head.call.number
    ordered = None if head is None else order_kept(graph, head.call.output, scores)
    selects = ordered is not None and ordered.selects
    shapes = {call.layer: graph[call.output].shape for call in calls}
    if head is not None:
        shapes[head.call.layer] = graph[head.linear.features].shape
    turned = positions_first(graph[scores].shape, shapes)
    return Study(forward, network, tuple(depth), by_layer, number, selects, turned)
