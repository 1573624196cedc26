"""One abstract forward of a model: shapes go in, a graph comes out, and nothing is computed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .graph import Graph
from .marks import Part

ScoresOf = Callable[[Any], tuple[Any, str]]  # from what a model returns to its scores, and where
Leaf = tuple[str, ...]  # where an array lies among the variables


@dataclass(frozen=True, eq=False)
class Forward:
    """The graph and the outputs of one abstract run of a model."""

    graph: Graph
    parts: Mapping[str, Part]  # modules by name
    weights: Mapping[int, Leaf]  # inputs of the graph that are variables of the model
    inputs: Mapping[
        int, str
    ]  # inputs of the graph that are arguments, and the parameters they are for
    place: str  # of the scores among what the model returned, in words
    model_name: str

    @property
    def scores(self) -> int:
        return self.graph.outputs[0]


def trace(
    run: Callable[[Any, Any, Any], Any],
    variables: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
) -> tuple[Graph, dict[int, Leaf], dict[int, str]]:
    """Run on shapes alone; return the graph, and which of its inputs are weights and which arguments.

    ``run(variables, args, kwargs)`` returns one array. What is not an array stays as it is:
    ``train=True`` is a bool. ``names`` are those of the positional parameters.
    """
    leaves, tree = jax.tree.flatten_with_path((variables, tuple(args), dict(kwargs)))
    arrays = [(path, leaf) for path, leaf in leaves if is_array_like(leaf)]

    def call(arrays_in_order: list[Any]) -> Any:
        values = iter(arrays_in_order)
        whole = [next(values) if is_array_like(leaf) else leaf for _, leaf in leaves]
        return run(*jax.tree.unflatten(tree, whole))

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for _, leaf in arrays]
    graph = Graph(jax.make_jaxpr(call)(shapes))
    weights, inputs = {}, {}
    for number, (path, _) in zip(graph.inputs, arrays, strict=True):
        if path[0].idx == 0:
            weights[number] = leaf_path(path)
        else:
            inputs[number] = _argument(path, names)
    return graph, weights, inputs


def other_rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Return arguments with a number of rows that nothing else has, so that shapes tell which axis holds samples; None if it is so."""
    arrays = [leaf for leaf in jax.tree.leaves((args, kwargs)) if getattr(leaf, "shape", ())]
    others = {size for leaf in arrays for size in leaf.shape[1:]}
    batch = arrays[0].shape[0] if arrays else 0
    if batch not in others:
        return None
    rows = next(number for number in itertools.count(2) if number not in others)

    def changed(leaf: Any) -> Any:
        if not (is_array_like(leaf) and leaf.shape[:1] == (batch,)):
            return leaf
        return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

    other_args, other_kwargs = jax.tree.map(changed, (tuple(args), dict(kwargs)))
    return other_args, other_kwargs


def leaves_by_path(variables: Any) -> dict[Leaf, Any]:
    """Return the arrays of a model's variables, or of an NNX state, by where they lie."""
    return {leaf_path(path): leaf for path, leaf in jax.tree.flatten_with_path(variables)[0]}


def leaf_path(path: Any) -> Leaf:
    """Return the keys of a path, without the boxes that hold a value."""
    return tuple(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def is_array_like(leaf: Any) -> bool:
    """Whether a leaf has shape and dtype, which is all that an abstract run needs."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _argument(path: Any, names: Sequence[str]) -> str:
    """Return the name of the parameter that an array was passed for."""
    key = path[1]
    if path[0].idx == 2:
        return str(key.key)
    return names[key.idx] if key.idx < len(names) else ""


def parameter_names(function: Any) -> list[str]:
    """Return the names of a method's positional parameters, without ``self``."""
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        return []
