"""One pass over a data set with frozen weights, compiled by whatever backend there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops, tree
from keras.src.backend import compute_output_spec  # nothing public infers shapes of a function

from collapsemeter.adapter.batches import split

from .graph import run_model
from .instrument import Count, Stash
from .labels import given_labels
from .operations import BACKEND, Key, dtype_of
from .untouched import quiet

if TYPE_CHECKING:
    from .state import StreamSums

Step = Callable[[Any, Any], None]
LayerShape = tuple[int, str]  # width and dtype of rows
ReduceRows = Callable[
    [dict[Key, Any], Any], dict[Key, Any]
]  # of the layers' outputs, and the model's
BATCH = 128


class NotRunnable(RuntimeError):
    """A model that is not built yet cannot run on its inputs, so that nothing can be learnt of it."""


class ShapesUnknown(ValueError):
    """The shapes of the layers' outputs cannot be told before a step runs."""


def batches_of(data: Any, batch_size: int) -> Iterable[Any]:
    """Return batches (x, y) of a data set; a tuple is the whole data, as in ``validation_data=``."""
    if isinstance(data, keras.utils.PyDataset):
        # Iterated by number: it need not say where it ends.
        return (data[number] for number in range(len(data)))
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        return data  # type: ignore[no-any-return]  # what is no iterable is refused by name later
    x, y = data[:2]
    if y is None:
        raise ValueError("observe got labels that are None: pass (x, y), or batches of both")
    rows = len(tree.flatten(x)[0])

    def cut(start: int) -> tuple[Any, Any]:
        return tuple(
            tree.map_structure(lambda a: a[start : start + batch_size], part) for part in (x, y)
        )

    return (cut(start) for start in range(0, rows, batch_size))


def inputs_and_labels(item: Any, labels: Any) -> tuple[Any, Any]:
    """Return inputs and labels of a batch, which ``labels=`` may name; sample weights are not looked at."""
    if isinstance(item, tuple | list) and len(item) == 3:
        item = item[:2]
    if labels is None:  # of several targets that of the scores is counted
        x, y, _ = split(item)
        return x, y
    # It says where they are, among the inputs too.
    pair = isinstance(item, tuple | list) and len(item) == 2
    x, y = item if pair else (item, None)
    return x, given_labels(x, y, labels)


def find_shapes(
    model: keras.Model, stash: Stash, stream: StreamSums, x: Any, rows: ReduceRows
) -> dict[Key, LayerShape]:
    """Return width and dtype of the rows of every layer, from a forward of shapes alone.

    JAX cannot make variables while it traces a step, and a strategy would mirror them.
    """
    if x is None:
        raise ShapesUnknown(
            f"{type(model).__name__} does not say what it takes, and JAX needs the shapes before it "
            "traces a step that writes statistics: call the model on a batch once"
        )
    ran = False

    def rows_of(inputs: Any) -> dict[Key, Any]:
        nonlocal ran
        with stash.open(stream):
            y_pred = run_model(model, inputs)
            ran = True
            return rows(stash.pop_outputs(), y_pred)

    try:
        specs = compute_output_spec(rows_of, x)
    except Exception as error:
        if ran:  # then it is the reductions or the outputs that do not fit
            raise
        raise ShapesUnknown(
            "the model's forward could not be run on shapes alone, which JAX needs before it traces a "
            f"step that writes statistics: {type(error).__name__}: {error}"
        ) from error
    return {key: (int(spec.shape[1]), dtype_of(spec)) for key, spec in specs.items()}


def frozen_step(
    model: keras.Model,
    stash: Stash,
    stream: StreamSums,
    count: Count,
    allocate: Callable[[StreamSums, Any], None],
) -> Step:
    """Return a compiled function that passes one batch through the model into the stream.

    ``allocate`` makes the stream's variables from the shapes of the first batch, where that must come before.
    """

    def step(x: Any, y: Any) -> None:
        with stash.open(stream):
            y_pred = run_model(model, x)
            count(stream, stash.pop_outputs(), {"x": x, "y": y, "y_pred": y_pred})

    if BACKEND == "tensorflow":
        import tensorflow as tf

        compiled: Step = tf.function(step, reduce_retracing=True, autograph=False)
        return compiled
    if BACKEND == "torch":
        import torch

        return torch.no_grad()(step)
    import jax

    @jax.jit
    def stateless(weights: list[Any], sums: list[Any], x: Any, y: Any) -> list[Any]:
        mapping = [*zip(model.variables, weights, strict=True)]
        mapping += zip(stream.variables, sums, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            step(x, y)
        return [scope.get_current_value(variable) for variable in stream.variables]

    def run(x: Any, y: Any) -> None:
        if not stream.layers:
            allocate(stream, specs_of(x))
        weights = [variable.value for variable in model.variables]
        sums = [variable.value for variable in stream.variables]
        for variable, value in zip(stream.variables, stateless(weights, sums, x, y), strict=True):
            variable.assign(value)

    return run


def tensors(part: Any) -> Any:
    """Return arrays of any framework as tensors of the backend."""

    def convert(leaf: Any) -> Any:
        if not ops.is_tensor(leaf) and hasattr(leaf, "numpy"):
            leaf = leaf.numpy()
        return ops.convert_to_tensor(np.asarray(leaf) if isinstance(leaf, list) else leaf)

    return tree.map_structure(convert, part)


def specs_of(part: Any) -> Any:
    """Return KerasTensors like a batch of inputs."""

    def spec(leaf: Any) -> Any:
        leaf = np.asarray(leaf) if not hasattr(leaf, "dtype") else leaf
        return keras.KerasTensor(tuple(leaf.shape), dtype_of(leaf))

    return tree.map_structure(spec, part)


def build(model: keras.Model, specs: Any) -> None:
    """Build a model as Keras does before its first step: nothing is computed.

    Raises
    ------
    NotRunnable
        If its forward does not take these inputs.
    """
    try:
        with quiet():
            compute_output_spec(lambda x: run_model(model, x), specs)
    except Exception as error:
        raise NotRunnable(
            f"{type(model).__name__} cannot be run on its inputs ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]})"
        ) from error


def input_specs(model: keras.Model) -> list[Any]:
    """Return what a built model takes, as KerasTensors: nothing if unknown, and several guesses of the dtype."""
    if getattr(model, "inputs", None):
        struct = getattr(model, "_inputs_struct", None)
        functional = getattr(model, "_functional", None)
        if struct is None and functional is not None:
            struct = functional._inputs_struct
        return [struct if struct is not None else model.inputs[0]]
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes or len(shapes) != 1:
        return []
    shape = next(iter(shapes.values()))
    layers = model._flatten_layers(include_self=False)
    looks_up = any(isinstance(layer, keras.layers.Embedding) for layer in layers)
    dtypes = ("int32", "float32") if looks_up else ("float32", "int32")
    return [_specs_of_shape(shape, dtype) for dtype in dtypes]


def _specs_of_shape(shape: Any, dtype: str) -> Any:
    # Into plain containers: those that Keras keeps on a model are of classes of its own.
    if isinstance(shape, Mapping):
        return {name: _specs_of_shape(part, dtype) for name, part in shape.items()}
    if any(isinstance(part, Mapping | list | tuple) for part in shape):
        return [_specs_of_shape(part, dtype) for part in shape]
    return keras.KerasTensor((None, *shape[1:]), dtype)
