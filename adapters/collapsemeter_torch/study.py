"""Read scores, head, and layers in the order of the data off one forward."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from collapsemeter.adapter.cut_points import cut_points
from collapsemeter.adapter.network import Network, Scores, positions_first, single_threshold
from collapsemeter.adapter.reduction import Layout

from .head import Origin, origin_of, reorders_samples
from .outputs import class_axis, scores_of
from .points import named_points, passes_on, repeated_layers
from .trace import Call, Node, memory_of, node_of, parents, rerun, trace

_BY_CALLS = (
    "no tensor is passed by all of the signal, as far as gradients tell: layers are those that repeat, in "
    "the order of their calls"
)


@dataclass(frozen=True)
class Study:
    """A network, and what PyTorch's hooks need besides."""

    network: Network
    layouts: Mapping[str, Layout | None]  # where each layer has its channels
    nearest: frozenset[str]  # maps with an output a class just before the scores
    passed: frozenset[str]  # layers that all of the signal passes
    channels_first: bool  # classes are on axis 1 of the scores
    sequences: frozenset[str]  # layers that give (B, T, d)
    turned: frozenset[str]  # layers that give (T, B, d)
    reordered: frozenset[str]  # layers whose samples may have another order than the scores
    shapes: Mapping[str, tuple[int, ...]]  # of what each layer gives
    runs: Mapping[str, int]  # how often the forward calls each layer
    selects: bool  # the scores are those that the head gave at some positions
    operations: int  # of the forward's products
    rows: int  # rows of scores that the forward gave


def study(
    root: nn.Module,
    named: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    scores: Scores,
    num_classes: int | None,
    with_head: bool = True,
) -> Study:
    """Run a network once, without a trace, and learn from it."""
    told = trace(root, named, args, kwargs)
    try:
        tensor, place = scores_of(told.output, scores, num_classes)
    except ValueError as error:
        raise ValueError(str(error).replace("FakeTensor", "Tensor")) from None
    calls, node = told.calls, node_of(tensor)
    if tensor.ndim == 0:
        raise ValueError(f"{place} is one number, and no scores: pass scores=")
    axis = class_axis(tensor, calls, num_classes)
    width = tensor.shape[axis] if tensor.ndim > 1 else 1
    origin = _unlinked(tensor, width, calls) if node is None else origin_of(node, calls, width)
    if not with_head:
        origin = replace(origin, head=None, no_head="no_head")
    features = _are_features(tensor, width, origin, num_classes)
    if features:  # the last layer's output is worth watching, too
        origin = replace(origin, path=())
    cuts = [] if node is None else _cuts(node, told.sources)
    points, before_head = named_points(cuts, calls, origin)
    note = ""
    if not points and not before_head:
        points = repeated_layers(calls, origin.head)
        note = _BY_CALLS if points else ""
    skipped = {call.layer: "passes its input on" for call in calls if passes_on(call.module)}
    if origin.head is not None:
        skipped |= dict.fromkeys(before_head, f"its output is the input of {origin.head.layer}")
    network = Network(
        order=tuple(dict.fromkeys(call.layer for call in calls)),
        points=tuple(points),
        head=None if origin.head is None else origin.head.layer,
        no_head=origin.no_head,
        width=None if features else width,
        threshold=_threshold(root, named, args, kwargs, origin, scores) if width == 1 else 0.0,
        place=place,
        skipped=skipped,
        note=note,
    )
    given = {call.layer: call.tensor.shape for call in calls if call.tensor is not None}
    turned = positions_first(tensor.shape, given)
    layouts: dict[str, Layout | None] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for call in calls:
        layout = call.layout
        if call.layer in turned and call.tensor is not None:
            layout = Layout(channels_first=False, width=call.tensor.shape[-1])
        layouts.setdefault(call.layer, layout)
        if call.tensor is not None:
            shapes.setdefault(call.layer, tuple(call.tensor.shape))
    at_cut = set(cuts)
    passed = frozenset(call.layer for call in calls if call.node in at_cut)
    sequences = frozenset(call.layer for call in calls if _is_sequence(call))
    return Study(
        network,
        layouts,
        origin.nearest,
        passed,
        axis == 1,
        sequences,
        turned,
        _reordered(cuts, calls),
        shapes,
        Counter(call.layer for call in calls),
        origin.selects,
        told.operations,
        tensor.numel() // max(1, width),
    )


def _reordered(cuts: Sequence[Node], calls: Sequence[Call]) -> frozenset[str]:
    """Return the layers after which all samples are put in another order."""
    waiting = [node for node in cuts if reorders_samples(node)][-1:]
    before = set[Node]()
    while waiting:
        more = [p for p in parents(waiting.pop()) if p not in before]
        before.update(more)
        waiting += more
    return frozenset(call.layer for call in calls if call.node in before)


def _is_sequence(call: Call) -> bool:
    first = call.layout is not None and call.layout.channels_first
    return call.tensor is not None and call.tensor.ndim == 3 and not first


def _are_features(output: Tensor, width: int, origin: Origin, num_classes: int | None) -> bool:
    """Whether what a network without a head returns is no scores, as far as can be seen."""
    if origin.head is not None:
        return False
    if num_classes is None:
        return output.ndim > 3 and not origin.nearest
    return width != num_classes and (num_classes, width) != (2, 1)


def _unlinked(scores: Tensor, width: int, calls: Sequence[Call]) -> Origin:
    """Return the map whose output is the scores themselves: all that is known without a graph."""
    makers = [c for c in calls if _same_memory(c.tensor, scores) and c.outputs == width]
    head = makers[-1] if makers else None
    return Origin(head, "scores_are_not_the_heads", nearest=frozenset(c.layer for c in makers[-1:]))


def _threshold(
    root: nn.Module,
    named: Mapping[str, nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    origin: Origin,
    scores: Scores,
) -> float:
    """Return where a single score decides: the network runs as if the maps that make it gave one number."""
    layers = [named[name] for name in origin.nearest]

    def score(logit: float) -> float:
        output, _ = scores_of(rerun(root, args, kwargs, layers, logit), scores, None)
        return float(output.reshape(-1)[0])

    if not layers:
        return 0.0
    try:
        return single_threshold(score)
    except Exception:  # whatever a network of somebody's does with two rows
        return 0.0


def _same_memory(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and memory_of(a) == memory_of(b)


def _cuts(scores: Node, sources: Sequence[set[Node]]) -> list[Node]:
    """Return the tensors that all data pass; where inputs join late, those that the first one passes."""
    everything = {node for source in sources for node in source}
    cuts = cut_points(scores, parents, everything.__contains__)
    if len(cuts) < 2 and len(sources) > 1:
        cuts = cut_points(scores, parents, sources[0].__contains__)
    return cuts
