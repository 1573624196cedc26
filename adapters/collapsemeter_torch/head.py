"""Which layer's output is the scores, or becomes them by maps that keep the order of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .trace import Call, Node, parents
from .weights import is_plain

# What moves, copies or selects whole rows of scores.
MOVES = {
    *("Alias", "Clone", "Expand", "Index", "Permute", "ReshapeAlias", "Select", "Slice", "Squeeze"),
    *("T", "ToCopy", "Transpose", "Unsqueeze", "UnsafeView", "View"),
}
SELECTS = {"Expand", "Index", "Select", "Slice"}
# What averages the scores of positions, and the activation that SqueezeNet has before it.
POOLS = {
    *("AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AvgPool2D", "AvgPool3D", "Mean", "Relu"),
    *("UpsampleBicubic2D", "UpsampleBilinear2D", "UpsampleNearest2D"),
}
_RISES = {"Clamp", "LogSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh"}
_KEEPS = MOVES | POOLS | _RISES
_PRODUCTS = {"Addmm", "Bmm", "Convolution", "Linear", "Mm"}


_NOT_THE_HEADS = "scores_are_not_the_heads"


@dataclass(frozen=True)
class Origin:
    """Where scores come from."""

    head: Call | None
    no_head: str  # why there is none: a reason code
    path: tuple[Node, ...] = ()  # from the scores to what makes them
    nearest: frozenset[str] = frozenset()  # maps with an output a class that are reached first

    @property
    def selects(self) -> bool:
        """Whether the scores are those that the head gave at some positions."""
        return any(operation(node) in SELECTS for node in self.path)


def origin_of(scores: Node, calls: Sequence[Call], width: int) -> Origin:
    """Follow the scores back to the map that makes them."""
    maps = {call.node: call for call in calls if call.node and call.outputs == width}
    node = scores
    path = [node]
    while node not in maps:
        before = _one_before(node, operation(node))
        if before is None:
            break
        node = before
        path.append(node)
    head = maps.get(node)
    if head is not None and _is_affine(head):
        origin = Origin(head, _NOT_THE_HEADS, tuple(path), frozenset([head.layer]))
        # Which position it was is told by the scores, where they are the head's and nothing else.
        is_told = not origin.selects or all(operation(n) in MOVES for n in path[:-1])
        return origin if is_told else replace(origin, head=None)
    nearest = frozenset(_nearest(node, maps))
    reason = "no_single_head" if len(nearest) > 1 else _NOT_THE_HEADS
    return Origin(None, reason, tuple(path), nearest)


def operation(node: Node) -> str:
    """Return the name of an operation without what autograd adds: of ``MeanBackward1``, ``Mean``."""
    return str(node[0].name()).rpartition("Backward")[0]


def reorders_samples(node: Node) -> bool:
    """Whether all samples are picked by number, as to sort them by length: labels may have another order before it."""
    function, name = node[0], operation(node)
    if name == "IndexSelect":
        index = function._saved_index if function._saved_dim == 0 else None
    elif name == "Index":
        index, *others = function._saved_indices
        index = None if any(other is not None for other in others) else index
    else:
        return False
    return index is not None and index.numel() == function._saved_self_sym_sizes[0]


def _one_before(node: Node, name: str) -> Node | None:
    """Return what scores were before a map that keeps their order."""
    before = parents(node)
    if name in ("Div", "Mul"):
        return _scaled(node, name)
    if name == "Index" and (_permutes_classes(node) or reorders_samples(node)):
        return None
    return before[0] if name in _KEEPS and len(before) == 1 else None


def _permutes_classes(node: Node) -> bool:
    """Whether scores are picked by number along the axis of the classes."""
    function: Any = node[0]
    indices, axes = function._saved_indices, len(function._saved_self_sym_sizes)
    axis = 1 if axes > 3 else axes - 1
    return len(indices) > axis and indices[axis] is not None


def _scaled(node: Node, name: str) -> Node | None:
    """Return what was multiplied with, or divided by, one positive number."""
    function = node[0]
    for place in (0,) if name == "Div" else (0, 1):
        edge = function.next_functions[place]
        if edge[0] is None:
            continue
        factor = function._saved_other if place == 0 else function._saved_self
        if factor is None or factor.numel() != 1:
            continue
        known = not factor.requires_grad and type(factor) is Tensor
        # A learnt temperature is positive.
        return edge if not known or float(factor) > 0 else None
    return None


def _is_affine(call: Call) -> bool:
    """Whether a layer gives ``x W' + b`` of what it is given, as far as can be seen."""
    if is_plain(call.module):
        return True
    node = call.node
    while node is not None and operation(node) in MOVES | {"Add"}:
        before = [p for p in parents(node) if not _is_leaf(p)]
        node = before[0] if len(before) == 1 else None
    if node is None or operation(node) not in _PRODUCTS:
        return False
    operands = [_moved_from(operand) for operand in parents(node)]
    weight = any(_is_leaf(o) and o[0].variable is call.weight for o in operands)
    reads_input = call.input_node is not None and _moved_from(call.input_node) in operands
    return weight and reads_input


def _moved_from(node: Node) -> Node:
    while operation(node) in MOVES and len(parents(node)) == 1:
        node = parents(node)[0]
    return node


def _is_leaf(node: Node) -> bool:
    return hasattr(node[0], "variable")


def _nearest(node: Node, maps: dict[Node, Call]) -> set[str]:
    """Return the maps with an output a class that are reached first."""
    names, waiting, seen = set[str](), [node], {node}
    while waiting:
        node = waiting.pop()
        if node in maps:
            names.add(maps[node].layer)
            continue
        more = [p for p in parents(node) if p not in seen]
        seen.update(more)
        waiting += more
    return names
