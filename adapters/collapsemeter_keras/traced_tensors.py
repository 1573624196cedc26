"""The tensors of one forward pass, without values, and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

_ROWS, _LENGTH = 2, 64  # of the batch that a traced forward pretends to have, and of unknown axes


class TracedTensor:
    """A tensor of the forward pass, without values.

    Attributes
    ----------
    operation : object
        Of Keras, or of the backend, that made it; None for an input.
    inputs : tuple of TracedTensor
        What it was made from.
    arguments, tensors : object, tuple
        What the operation was called with, and the inputs as they are named there.
    layers : list of str
        Whose output it is, the innermost first.
    is_source : bool
        The signal begins here.
    of_input : bool
        It depends on an input of the model.
    has_signal : bool
        It depends on a source, by floats all the way.
    """

    def __init__(
        self,
        shape: tuple[int | None, ...],
        dtype: str,
        operation: Any = None,
        inputs: tuple[TracedTensor, ...] = (),
        arguments: Any = None,
        tensors: tuple[Any, ...] = (),
    ) -> None:
        self.shape, self.dtype, self.operation = shape, dtype, operation
        self.inputs, self.arguments, self.tensors = inputs, arguments, tensors
        self.layers: list[str] = []
        self.is_source = False
        self.of_input: bool = any(value.of_input for value in inputs)
        self.has_signal: bool = self.is_float and any(value.has_signal for value in inputs)

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return bool(keras.backend.is_float_dtype(self.dtype))


def traced_tensor(
    tensor: Any,
    operation: Any = None,
    arguments: Any = None,
    before: Mapping[int, TracedTensor] | None = None,
) -> TracedTensor:
    tensors = () if arguments is None else signals_of(arguments)
    inputs = tuple((before or {})[id(t)] for t in tensors)
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return TracedTensor(tuple(tensor.shape), dtype, operation, inputs, arguments, tensors)


def node_of(tensor: Any) -> Any:
    """Return the node that made a symbolic tensor; None for one that nothing made."""
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    node = history.operation._inbound_nodes[history.node_index]
    return None if node.is_input else node


def signals_of(arguments: Any) -> tuple[Any, ...]:
    """Return the symbolic tensors among arguments, but for masks."""
    kwargs = {name: part for name, part in arguments.kwargs.items() if not name.endswith("mask")}
    flat = tree.flatten((arguments.args, kwargs))
    return tuple(t for t in flat if isinstance(t, keras.KerasTensor))


def first_argument(arguments: Any) -> list[Any]:
    """Return the symbolic tensors of the first argument, which is what a model takes."""
    first = arguments.args[0] if arguments.args else next(iter(arguments.kwargs.values()))
    return [t for t in tree.flatten(first) if isinstance(t, keras.KerasTensor)]


def with_rows(inputs: Any) -> Any:
    """Return symbolic tensors of the same kinds, of a batch with rows."""
    return tree.map_structure(tensor_with_rows, inputs)


def tensor_with_rows(tensor: Any) -> Any:
    """Return a new symbolic tensor of the same kind, of a batch with rows."""
    rows, *sizes = tensor.shape or (_ROWS,)
    sizes = [_LENGTH if size is None else size for size in sizes]
    shape = (_ROWS if rows is None else rows, *sizes) if len(tensor.shape) else ()
    return keras.KerasTensor(shape, keras.backend.standardize_dtype(tensor.dtype))
