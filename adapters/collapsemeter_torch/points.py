"""Which of a network's layers to watch: names for the tensors that all data pass."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from .head import MOVES, SELECTS, Origin, operation
from .trace import Call, Node, parents

_PASSES_ON = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, eq=False)
class _Point:
    """A tensor that all data pass, and the layer that gives it."""

    node: Node
    call: Call
    maps: int  # that ran until then
    maps_inside: int
    branches: bool  # whether some of those inside lie on branches

    @property
    def layer(self) -> str:
        return self.call.layer


def named_points(
    cuts: Sequence[Node], calls: Sequence[Call], origin: Origin
) -> tuple[list[str], list[str]]:
    """Name the cut points in order; return also the names of what the head is given.

    Left out is what another one says: the inside of a block, and what the head is given.
    """
    path = set(origin.path)
    named = _points([node for node in cuts if node not in path], calls)
    wholes = _single_blocks([point for names in named for point in names], calls)
    points = [
        names[0] for names in named if not any(is_inside(names[0].layer, whole) for whole in wholes)
    ]
    of_head = set() if origin.head is None else _same_features(origin.head.input_node)
    ends = [point for run in _runs(points) for point in _ends(run)]
    embeddings = nn.Embedding | nn.EmbeddingBag
    chosen = [p for p in ends if not isinstance(p.call.module, embeddings)]
    layers = list(dict.fromkeys(p.layer for p in chosen if p.node not in of_head))
    before_head = [p.layer for names in named for p in names if p.node in of_head]
    return layers, [name for name in before_head if name not in layers]


def repeated_layers(calls: Sequence[Call], head: Call | None) -> list[str]:
    """Name the outermost layers that have siblings of their kind, or else those with weights, as they ran."""
    named = _modules(calls)
    if head is not None:
        del named[head.layer]
    alike: dict[tuple[str, type], list[str]] = {}
    for name, module in named.items():
        embeds = isinstance(module, nn.Embedding)
        if not embeds and any(is_map(part) for part in module.modules()):
            alike.setdefault(_kind(name, module), []).append(name)
    repeated = [name for names in alike.values() if len(names) > 1 for name in names]
    repeated = repeated or [name for names in alike.values() for name in names]
    outermost = [n for n in repeated if not any(is_inside(n, whole) for whole in repeated)]
    return sorted(outermost, key=list(named).index)


def is_map(module: nn.Module) -> bool:
    """Whether a layer has a matrix of its own."""
    parameters = [p for p in module._parameters.values() if p is not None]
    matrix = any(p.ndim > 1 for p in parameters) or hasattr(module, "parametrizations")
    return matrix and not isinstance(module, nn.LayerNorm)


def passes_on(module: nn.Module) -> bool:
    """Whether a layer gives what it is given, in another shape perhaps."""
    return isinstance(module, _PASSES_ON) or type(module).__module__ == "torch.nn.modules.padding"


def is_inside(name: str, whole: str) -> bool:
    """Whether a layer is a part of another one."""
    return name.startswith(whole + ".")


def _points(cuts: Sequence[Node], calls: Sequence[Call]) -> list[list[_Point]]:
    """Give every cut point its names, the outermost first."""
    at_cut = set(cuts)
    branching = {call.layer for call in calls if call.node not in at_cut}
    times: dict[Node, list[int]] = {node: [] for node in cuts}
    for time, call in enumerate(calls):
        if call.node in at_cut and call.layer not in branching and not passes_on(call.module):
            times[call.node].append(time)
    maps = [time for time, call in enumerate(calls) if is_map(call.module)]

    def point(time: int) -> _Point:
        call = calls[time]
        assert call.node is not None
        inside = [t for t in maps if t <= time and _holds(call.layer, calls[t].layer)]
        branches = any(calls[t].node not in at_cut for t in inside)
        ran = sum(t <= time for t in maps)
        return _Point(call.node, call, ran, len(inside), branches)

    named, latest = list[list[_Point]](), len(calls)
    for node in reversed(cuts):
        # What ends after the next point was reached is a name of more than this tensor.
        names = [time for time in times[node] if time < latest]
        if names:
            latest = min(names)
            outermost = sorted(names, key=lambda t: (calls[t].layer.count("."), t))
            named.append([point(time) for time in outermost])
    return named[::-1]


def _holds(whole: str, name: str) -> bool:
    return whole == name or is_inside(name, whole)


def _single_blocks(points: Sequence[_Point], calls: Sequence[Call]) -> list[str]:
    """Return the layers of whose inside nothing is named: one map with its norm, or one block.

    A stage or backbone has blocks inside: layers of several maps that have siblings of their kind.
    """
    kinds = Counter(_kind(name, module) for name, module in _modules(calls).items())

    def repeats(point: _Point) -> bool:
        module = point.call.module
        whole = point.branches or not isinstance(module, nn.Sequential)
        return whole and point.maps_inside > 1 and kinds[_kind(point.layer, module)] > 1

    blocks = [point.layer for point in points if repeats(point)]
    return [
        point.layer
        for point in points
        if point.maps_inside == 1
        or (
            (point.branches or repeats(point))
            and not any(is_inside(block, point.layer) for block in blocks)
        )
    ]


def _kind(name: str, module: nn.Module) -> tuple[str, type]:
    return name.rpartition(".")[0], type(module)


def _modules(calls: Sequence[Call]) -> dict[str, nn.Module]:
    return {call.layer: call.module for call in calls}


def _runs(points: Sequence[_Point]) -> Iterator[list[_Point]]:
    """Yield runs of points between which no further map ran: a convolution, its norm and activation."""
    run: list[_Point] = []
    for point in points:
        if run and point.maps != run[-1].maps:
            yield run
            run = []
        run.append(point)
    if run:
        yield run


def _ends(run: Sequence[_Point]) -> list[_Point]:
    """Return what speaks for a run: its last, and a block besides, after which only a norm is news."""
    first, *after = run
    if not first.branches:
        return [run[-1]]
    has_norm = any(any(True for _ in point.call.module.parameters()) for point in after)
    return [first, after[-1]] if has_norm else [first]


def _same_features(head_input: Node | None) -> set[Node]:
    """Return the tensors that hold what the head is given, as vectors or just before they are pooled."""
    same = set[Node]()
    node = head_input
    while node is not None:
        same.add(node)
        name, before = operation(node), parents(node)
        if len(before) != 1 or name not in MOVES - SELECTS:
            break
        node = before[0]
    return same
