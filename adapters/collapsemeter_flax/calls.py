"""The outputs of a module in each of its calls, also where a transformation stacked them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

PREFIX = "collapsemeter"
# Methods that are calls of a layer: an embedding that makes scores of features is a layer of its own name.
METHODS = {"__call__": "", "attend": "attend"}
Place = tuple[int, tuple[int, ...]]  # number of the call, and the shape that it had there
Calls = dict[Place, Any]


def leaf_of(value: Any) -> Any:
    """Return the first array in what a module gave, None if there is none."""
    arrays = (leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array | np.ndarray))
    return next(arrays, None)


def key_of(number: int, value: Any, method: str = "__call__") -> str:
    """Name a call by its number and shape: what is stacked later is told by the shape that it had."""
    leaf = leaf_of(value)
    shape = json.dumps([] if leaf is None else list(leaf.shape))
    return f"{prefix_of(method)}{number}:{shape}"


def prefix_of(method: str) -> str:
    """Return what the keys of a method's calls begin with."""
    return f"{PREFIX}{METHODS[method]}:"


def layer_of(path: Iterable[Any], key: str) -> str:
    """Return the name of the layer whose call a key names, at the path of its module."""
    method = key.partition(":")[0].removeprefix(PREFIX)
    return ".".join([*map(str, path), *filter(None, [method])])


def place_of(key: str) -> Place:
    """Return the number and shape in a key."""
    _, number, shape = key.split(":")
    return int(number), tuple(json.loads(shape))


def in_order(calls: Calls) -> list[Any]:
    """Return what each call gave; a stack of calls (of ``scan``) is taken apart."""
    values: list[Any] = []
    for (_, shape), value in sorted(calls.items(), key=lambda call: call[0]):
        leaf = leaf_of(value)
        values += [value] if leaf is None else _unstacked(value, leaf.shape, shape)
    return values


def _unstacked(value: Any, shape: tuple[int, ...], single: tuple[int, ...]) -> list[Any]:
    if shape == single:
        return [value]
    axis = _stacking_axis(shape, single)
    parts = [
        jax.tree.map(lambda leaf, i=i: leaf[(slice(None),) * axis + (i,)], value)
        for i in range(shape[axis])
    ]
    of_a_part = shape[:axis] + shape[axis + 1 :]
    return [call for part in parts for call in _unstacked(part, of_a_part, single)]


def _stacking_axis(shape: tuple[int, ...], single: tuple[int, ...]) -> int:
    """The first axis without which the rest is, or still holds, the shape of one call."""
    if len(shape) == len(single) + 1:
        for axis in range(len(shape)):
            if shape[:axis] + shape[axis + 1 :] == single:
                return axis
    return 0


def abstract(run: Callable[..., Any], *trees: Any) -> Any:
    """``jax.eval_shape`` that leaves what is not an array as it is: ``train=True`` stays a bool."""
    leaves, tree = jax.tree.flatten(trees)
    arrays = [
        i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    ]
    shapes = [jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype) for i in arrays]

    def call(values: list[Any]) -> Any:
        filled = list(leaves)
        for i, value in zip(arrays, values, strict=True):
            filled[i] = value
        return run(*jax.tree.unflatten(tree, filled))

    return jax.eval_shape(call, shapes)
