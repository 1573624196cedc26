"""The layers that a person would name: cut points of a forward pass, one of each run and for each tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras

from collapsemeter.adapter.cut_points import cut_points

from .graph import Graph, functional_of, is_custom
from .traced_tensors import TracedTensor

if TYPE_CHECKING:
    from .head import Decision

_MERGES_OF_A_CELL = 12  # a stretch with fewer merges is no row of cells
_POINTS_OF_A_BLOCK = 4  # what has more inside is a network of its own
_PASSES_ON = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Identity,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
    keras.layers.GaussianNoise,
)
_POOLS = "keras.src.layers.pooling"
# What continues a block that a layer with weights, or a sum, began.
_CONTINUES = (_POOLS, "keras.src.layers.activations", "keras.src.layers.normalization")


class Points(NamedTuple):
    """The layers that `auto` may watch, in order, and why others are none."""

    names: tuple[str, ...]
    skipped: dict[str, str]


def points_of(
    graph: Graph, parts: Mapping[str, Any], scores: TracedTensor, decision: Decision
) -> Points | None:
    """Return the cut points that are worth watching; None where no path leads from an input."""
    cuts = cut_points(scores, signals_before, lambda value: value.is_source)
    if not cuts:
        return None
    skipped = {name: "passes its input on" for name, part in parts.items() if passes_on(part)}
    head_input = None if decision.head is None else graph.given.get(decision.head)
    feeding = _feeding(head_input)
    for value in feeding:
        if decision.head is not None:
            skipped |= dict.fromkeys(value.layers, f"its output is the input of {decision.head}")
    for value in decision.tail[1:]:
        for name in value.layers:
            skipped.setdefault(name, "it comes after the head")
    beyond = {*decision.tail, scores, *feeding}
    chain = [value for value in _with_cells(cuts) if value not in beyond and value.layers]
    first = _first_learnt(chain)
    for value in chain[:first]:
        skipped.setdefault(outermost(value), "it comes before any weights")
    chain = [value for value in chain[first:] if _is_worth_a_name(value, parts, skipped)]
    names: list[str] = []
    for value, after in zip(chain, [*chain, _last(feeding)][1:], strict=True):
        name = outermost(value)
        if _goes_on(value, after, parts):
            skipped.setdefault(name, "the block goes on after it")
        elif name not in names:
            names.append(name)
    names = _outside_of_blocks(names, parts)
    return Points(tuple(names), {name: why for name, why in skipped.items() if name not in names})


def _outside_of_blocks(names: Sequence[str], parts: Mapping[str, Any]) -> list[str]:
    """Leave out what is inside of a block that is a point itself: a small layer, one of several of its class."""

    def is_block(name: str) -> bool:
        folder, inside = name.rpartition("/")[0], [n for n in names if n.startswith(f"{name}/")]
        alike = [
            n
            for n in names
            if n.rpartition("/")[0] == folder and type(parts[n]) is type(parts[name])
        ]
        return 0 < len(inside) <= _POINTS_OF_A_BLOCK and len(alike) > 1

    blocks = [name for name in names if is_block(name)]
    return [name for name in names if not any(name.startswith(f"{block}/") for block in blocks)]


def signals_before(value: TracedTensor) -> list[TracedTensor]:
    """Return what a value was computed from, along which a signal comes."""
    return [part for part in value.inputs if part.has_signal]


def outermost(value: TracedTensor) -> str:
    """Return the name of the outermost layer whose output a value is."""
    return min(value.layers, key=lambda name: name.count("/"))


def passes_on(part: Any) -> bool:
    """Whether a layer gives what it is given."""
    return isinstance(part, _PASSES_ON)


def is_global_pool(part: Any) -> bool:
    """Whether a layer makes one position of all."""
    return type(part).__module__.startswith(_POOLS) and type(part).__name__.startswith("Global")


def _feeding(head_input: TracedTensor | None) -> list[TracedTensor]:
    """Return the values that are the head's input in other words, from it back to a layer that computes."""
    feeding: list[TracedTensor] = []
    value = head_input
    while value is not None:
        feeding.append(value)
        before = signals_before(value)
        reshapes = isinstance(value.operation, keras.layers.Layer) and passes_on(value.operation)
        casts = type(value.operation).__name__ in ("Cast", "Identity")
        value = before[0] if len(before) == 1 and (reshapes or casts) else None
    return feeding


def _last(feeding: Sequence[TracedTensor]) -> TracedTensor | None:
    """Return what the head's input began as, unless that is pooled: then the layer before is another tensor."""
    return feeding[-1] if feeding and not is_global_pool(feeding[-1].operation) else None


def _first_learnt(chain: Sequence[TracedTensor]) -> int:
    """Return the number of values before any weights: the input, and what prepares it."""
    seen: set[TracedTensor] = set()
    for number, value in enumerate(chain):
        pending = [value]
        while pending:
            last = pending.pop()
            if last not in seen:
                seen.add(last)
                if _has_table(last.operation) or last.is_source != (not last.inputs):
                    return number
                pending += last.inputs
    return len(chain)


def _has_table(part: Any) -> bool:
    """Whether a layer has a kernel or a table: a mean and a variance of the input only prepare it."""
    weights: Any = getattr(part, "weights", None)
    return any(len(weight.shape) > 1 for weight in weights or ())


def _is_worth_a_name(
    value: TracedTensor, parts: Mapping[str, Any], skipped: dict[str, str]
) -> bool:
    """Whether a value is the output of a layer that a person would name."""
    name = outermost(value)
    part = parts[name]
    if isinstance(part, keras.layers.Embedding):
        skipped.setdefault(name, "it is an embedding alone")
        return False
    if passes_on(part) or not value.is_float or len(value.shape) < 2:
        return False
    return isinstance(part, keras.layers.Layer) or len(signals_before(value)) > 1


def _goes_on(value: TracedTensor, after: TracedTensor | None, parts: Mapping[str, Any]) -> bool:
    """Whether what comes next belongs to the same block: norm, activation or pooling of one layer."""
    if after is None or not after.layers or is_composite(parts[outermost(value)]):
        return False
    operation = after.operation
    if not isinstance(operation, keras.layers.Layer) or not type(operation).__module__.startswith(
        _CONTINUES
    ):
        return False
    before = signals_before(after)
    while len(before) == 1 and before[0] is not value:
        if not passes_on(before[0].operation) and before[0].layers:
            return False
        before = signals_before(before[0])
    return before == [value]


def is_composite(part: Any) -> bool:
    """Whether a layer is a block of others: not one of Keras' own, which are one layer to a person."""
    if functional_of(part) is not None:
        return True
    return is_custom(part) and any(inner.weights for inner in part._layers)


# Cells that read the two before them


def _with_cells(cuts: Sequence[TracedTensor]) -> list[TracedTensor]:
    """Put the outputs of cells between cut points: merges that with an earlier one are a cut of two tensors."""
    chain: list[TracedTensor] = []
    for value, before in zip(cuts, [None, *cuts[:-1]], strict=True):
        if before is not None:
            chain += _cells(before, value)
        chain.append(value)
    return chain


def _cells(first: TracedTensor, last: TracedTensor) -> list[TracedTensor]:
    """Return the outputs of cells between two cut points, in order."""
    merges = [value for value in _between(first, last) if len(set(signals_before(value))) > 1]
    if len(merges) < _MERGES_OF_A_CELL:
        return []
    among, cells = set(merges), dict.fromkeys(merges, False)
    for removed in merges:

        def before(value: TracedTensor, removed: TracedTensor = removed) -> list[TracedTensor]:
            return [part for part in signals_before(value) if part is not removed]

        if removed is last:
            continue
        earlier = set(_between(first, removed))
        partners = cut_points(last, before, lambda value: value is first)[1:-1]
        for partner in partners:
            if partner in among and partner in earlier:
                cells[removed] = cells[partner] = True
    return [value for value in merges if cells[value]]


def _between(first: TracedTensor, last: TracedTensor) -> list[TracedTensor]:
    """Return what lies between two values, and the last, in the order of the data."""
    order: list[TracedTensor] = []
    seen, stack = {first, last}, [(last, iter(signals_before(last)))]
    while stack:
        value, left = stack[-1]
        part = next((part for part in left if part not in seen), None)
        if part is None:
            order.append(value)
            stack.pop()
        else:
            seen.add(part)
            stack.append((part, iter(signals_before(part))))
    return order
