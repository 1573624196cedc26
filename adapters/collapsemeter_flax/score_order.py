"""Whether scores keep, in every row, the order of what a layer gave."""

import math
from dataclasses import dataclass, replace

import numpy as np

from .graph import SAME, SHAPES, Graph, Value

_RISING = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "sqrt", "cbrt"}
_RISING |= {"asinh", "atan", "sinh", "log2"}
_POSITIVE = {"exp", "exp2", "logistic"}
_KEEPS_SIGN = {"add", "mul", "div", "max", "min", "sqrt", "rsqrt"}  # of positive numbers
_ELEMENTWISE = SAME | _RISING | _KEEPS_SIGN | {"sub", "neg", "abs", "sign", "square", "select_n"}
_ELEMENTWISE |= {"pow", "integer_pow", "eq", "ne", "lt", "le", "gt", "ge", "is_finite", "and", "or"}
_ELEMENTWISE |= {"not", "floor", "clamp", "add_any"}
SELECTS = {"slice", "dynamic_slice", "gather"}


@dataclass(frozen=True)
class Ordered:
    """A value whose entries along one axis are ordered as the layer's; or one that is alike along it.

    ``axis`` is that of the classes, None in a value that is constant for a row.
    """

    axis: int | None
    sign: int = 1
    averages: bool = True  # a mean over positions is that of the layer's own
    positive: bool = False
    constant: frozenset[int] = frozenset()  # the axes along which a value of the row does not vary
    selects: bool = False  # the layer's rows at some positions alone
    plain: bool = True  # entries are those of the layer themselves


def keeps_order(graph: Graph, start: int, scores: int) -> bool:
    """Whether row-wise maps that keep order lead from a value, classes on its last axis, to the scores."""
    return order_kept(graph, start, scores) is not None


def order_kept(graph: Graph, start: int, scores: int) -> Ordered | None:
    """Return how the scores are ordered as a value is, classes on its last axis; None where they are not.

    Of scores that are a value's at one position of each row it is known which only where they are no others.
    """
    first = graph[start]
    if not first.shape:
        return None
    orders: dict[int, Ordered | None] = {start: Ordered(len(first.shape) - 1)}
    needed = graph.ancestors(scores)
    for number in range(start + 1, scores + 1):
        value = graph[number]
        if number in needed and any(i in orders for i in value.inputs):
            after = _after(graph, value, orders)
            if after is not None and value.operation not in SAME | SHAPES | SELECTS:
                after = replace(after, plain=False)
            orders[number] = after
    end = orders.get(scores)
    shape = graph[scores].shape
    if end is None or end.axis is None or end.sign < 0:
        return None
    if end.selects:
        *rows, classes = (*first.shape[:-2], first.shape[-1])
        fits = shape == (*rows, classes) or (classes == 1 and shape == (*rows,))
        return end if end.plain and fits else None
    is_single_number = first.shape[-1] == 1 and math.prod(shape) == shape[0]
    return end if is_single_number or end.axis == len(shape) - 1 else None


def _after(graph: Graph, value: Value, orders: dict[int, Ordered | None]) -> Ordered | None:
    if value.operation in SELECTS:
        first = orders.get(value.inputs[0])
        return None if first is None else _selected(first, graph[value.inputs[0]].shape, value)
    inputs = [_as_operand(graph, i, orders) for i in value.inputs]
    if any(i in orders and orders[i] is None for i in value.inputs):
        return None
    name = value.operation
    known = [operand for operand in inputs if operand is not None]
    if len(known) != len(inputs):
        return None
    ranked = [operand for operand in known if operand.axis is not None]
    if name in SHAPES and len(value.inputs) >= 1:
        return _reshaped(known[0], graph[value.inputs[0]].shape, value)
    if name == "reduce_window_sum":
        return known[0] if _tiles(value, graph[value.inputs[0]].shape, known[0]) else None
    if name.startswith("reduce_") and name not in SAME:
        return _reduced(known[0], value)
    if not ranked:
        return _row(graph, value, known)
    if name in SAME:
        return known[value.output]
    if name in _RISING:
        return replace(known[0], averages=False, positive=name in _POSITIVE)
    if name == "neg":
        return replace(known[0], sign=-known[0].sign, positive=False)
    if name == "integer_pow" and value.params["y"] % 2 == 1 and value.params["y"] > 0:
        return replace(known[0], averages=False)
    if name == "clamp":
        return replace(known[1], averages=False) if known[1].axis is not None else None
    if len(known) == 2 and len(ranked) == 1:
        return _with_row(graph, name, value, known, ranked[0])
    return None


def _as_operand(graph: Graph, number: int, orders: dict[int, Ordered | None]) -> Ordered | None:
    if number in orders:
        return orders[number]
    value = graph[number]
    return (
        Ordered(None, positive=_is_positive(graph, number), constant=_constant_axes(graph, number))
        if value.is_float or value.operation == "literal"
        else None
    )


def _with_row(
    graph: Graph, name: str, value: Value, known: list[Ordered], ranked: Ordered
) -> Ordered | None:
    """Combine ordered entries with something that is the same for all classes of a row."""
    row = next(operand for operand in known if operand.axis is None)
    first = known[0] is ranked
    scalar = not graph[value.inputs[1 if first else 0]].shape
    if not scalar and ranked.axis not in row.constant:
        return None
    whole = scalar or len(row.constant) == len(value.shape)
    averages = ranked.averages and whole
    positive = ranked.positive and row.positive
    if name in ("add", "add_any"):
        return replace(ranked, averages=averages, positive=positive)
    if name == "sub":
        sign = ranked.sign if first else -ranked.sign
        return replace(ranked, sign=sign, averages=averages, positive=False)
    if name in ("max", "min"):
        # A ReLU keeps order, if not strictly; a mean over positions is taken after it.
        return replace(ranked, positive=positive)
    if name == "mul" and row.positive:
        return replace(ranked, averages=averages, positive=positive)
    if name == "div" and first and row.positive:
        return replace(ranked, averages=averages, positive=positive)
    if name == "div" and not first and row.positive and ranked.positive:
        return replace(ranked, sign=-ranked.sign, averages=False)
    return None


def _row(graph: Graph, value: Value, known: list[Ordered]) -> Ordered | None:
    """Return what elementwise operations make of values that do not vary over the classes."""
    shapes = [graph[i].shape for i in value.inputs if graph[i].shape]
    if value.operation not in _ELEMENTWISE or any(
        len(shape) != len(value.shape) for shape in shapes
    ):
        return None
    constant = frozenset(range(len(value.shape)))
    for operand, i in zip(known, value.inputs, strict=True):
        if graph[i].shape:
            constant &= operand.constant
    name = value.operation
    positive = name in _POSITIVE or (
        name in SAME | _KEEPS_SIGN and all(operand.positive for operand in known)
    )
    return Ordered(None, positive=positive, constant=constant)


def _reduced(operand: Ordered, value: Value) -> Ordered | None:
    axes = value.params.get("axes")
    if axes is None:
        return None
    left = [axis for axis in range(len(value.shape) + len(axes)) if axis not in axes]
    constant = frozenset(i for i, axis in enumerate(left) if axis in operand.constant)
    positive = operand.positive and value.operation in ("reduce_sum", "reduce_max", "reduce_min")
    if operand.axis is None or operand.axis in axes:
        return Ordered(None, positive=positive, constant=constant)
    if value.operation == "reduce_sum" and operand.averages and 0 not in axes:
        return replace(operand, axis=left.index(operand.axis), positive=positive)
    return None


def _selected(operand: Ordered, shape: tuple[int, ...], value: Value) -> Ordered | None:
    """Follow the classes where rows are taken at some positions."""
    if value.shape == shape and value.operation != "gather":
        return operand
    axis = operand.axis
    if axis is None:
        return None
    if value.operation == "gather":
        numbers = value.params["dimension_numbers"]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        left = [i for i in range(len(shape)) if i not in gone]
        if axis not in left or value.params["slice_sizes"][axis] != shape[axis]:
            return None
        axis = sorted(numbers.offset_dims)[left.index(axis)]
    elif value.shape[axis] != shape[axis]:
        return None
    return replace(operand, axis=axis, selects=True, constant=frozenset())


def _tiles(value: Value, shape: tuple[int, ...], operand: Ordered) -> bool:
    """Whether windows over positions cover each of them once."""
    params = value.params
    window, strides = params["window_dimensions"], params["window_strides"]
    dilated = set(params["base_dilation"]) | set(params["window_dilation"]) != {1}
    padded = any(low or high for low, high in params["padding"])
    if operand.axis is None or not operand.averages or dilated or padded:
        return False
    once = all(
        size == width or (width == step and size % width == 0)
        for size, width, step in zip(shape, window, strides, strict=True)
    )
    return once and window[0] == 1 and window[operand.axis] == 1


def _reshaped(operand: Ordered, shape: tuple[int, ...], value: Value) -> Ordered | None:
    """Follow the axes through a change of shape that splits none of the classes."""
    places = _places(shape, value)
    if places is None:
        return None
    new = set(range(len(value.shape))) - set(places.values())
    constant = {places[axis] for axis in operand.constant if axis in places} | new
    constant |= {place for axis, place in places.items() if shape[axis] == 1}
    if operand.axis is None:
        return replace(operand, constant=frozenset(constant))
    if operand.axis not in places:
        # One score a row may lose its axis.
        if shape[operand.axis] != 1 or not value.shape:
            return None
        return replace(operand, axis=len(value.shape) - 1)
    axis = places[operand.axis]
    if value.shape[axis] != shape[operand.axis]:
        return None
    return replace(operand, axis=axis)


def _places(shape: tuple[int, ...], value: Value) -> dict[int, int] | None:
    """Return where each axis goes."""
    name, params = value.operation, value.params
    if name == "broadcast_in_dim":
        return dict(enumerate(params["broadcast_dimensions"]))
    if name == "transpose":
        return {axis: place for place, axis in enumerate(params["permutation"])}
    if name == "squeeze":
        left = [axis for axis in range(len(shape)) if axis not in params["dimensions"]]
        return {axis: place for place, axis in enumerate(left)}
    old = [axis for axis, size in enumerate(shape) if size != 1]
    new = [axis for axis, size in enumerate(value.shape) if size != 1]
    if [shape[axis] for axis in old] == [value.shape[axis] for axis in new]:
        return dict(zip(old, new, strict=True))
    if shape and value.shape and shape[-1] == value.shape[-1]:
        return {len(shape) - 1: len(value.shape) - 1}
    return None


def _constant_axes(graph: Graph, number: int) -> frozenset[int]:
    """Return the axes along which a value that is not of the layer does not vary."""
    value = graph[number]
    every = frozenset(range(len(value.shape)))
    if value.constant is not None:
        array = np.asarray(value.constant)
        if array.size and (array == array.reshape(-1)[0]).all():
            return every
    ones = frozenset(axis for axis in every if value.shape[axis] == 1)
    if value.operation == "broadcast_in_dim":
        mapped = value.params["broadcast_dimensions"]
        inner = _constant_axes(graph, value.inputs[0])
        source = graph[value.inputs[0]].shape
        moved = {place for axis, place in enumerate(mapped) if axis in inner or (source[axis] == 1)}
        return ones | (every - set(mapped)) | moved
    if value.operation in SAME:
        return ones | _constant_axes(graph, value.inputs[0])
    return ones


def _is_positive(graph: Graph, number: int) -> bool:
    value = graph[number]
    if value.constant is not None:
        array = np.asarray(value.constant)
        return bool(array.dtype.kind in "fiu" and array.size and (array > 0).all())
    if value.operation in _POSITIVE:
        return True
    if value.operation in SAME | SHAPES:
        return _is_positive(graph, value.inputs[0])
    return value.operation in _KEEPS_SIGN and all(_is_positive(graph, i) for i in value.inputs)
