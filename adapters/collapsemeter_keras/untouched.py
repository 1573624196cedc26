"""A model stays as it was while it is studied: its layers, and every global state that a forward may touch."""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state  # nothing public restores automatic names

_BACKEND = keras.backend.backend()


@contextmanager
def replaced(part: Any, attribute: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function into a layer's dict within the block, past `Layer.__setattr__`, which would track it."""
    before = part.__dict__.get(attribute)
    part.__dict__[attribute] = function
    try:
        yield
    finally:
        if before is None:
            del part.__dict__[attribute]
        else:
            part.__dict__[attribute] = before


@contextmanager
def unchanged(parts: Iterable[Any], *, nested: bool = True) -> Iterator[None]:
    """Leave variables, nodes, automatic names and random numbers as they were before the block.

    ``nested`` is of what Keras itself does around a forward of shapes alone.
    """
    nodes = [nodes for part in parts for nodes in (part._inbound_nodes, part._outbound_nodes)]
    lengths = [len(list_of_nodes) for list_of_nodes in nodes]
    names = global_state.get_global_attribute("object_name_uids")
    names_before = None if names is None else names.copy()
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 # what the user's layers may draw from
    try:
        with ExitStack() as stack:
            stack.enter_context(quiet())
            stack.enter_context(keras.StatelessScope())
            stack.enter_context(keras.SymbolicScope())
            if _BACKEND == "tensorflow" and nested:
                import tensorflow as tf

                stack.enter_context(tf.__internal__.FuncGraph("collapsemeter").as_default())
            elif _BACKEND == "torch":
                import torch

                stack.enter_context(torch.random.fork_rng())
                stack.enter_context(torch.no_grad())
            yield
    finally:
        for list_of_nodes, length in zip(nodes, lengths, strict=True):
            del list_of_nodes[length:]
        global_state.set_global_attribute("object_name_uids", names_before)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def eagerly() -> AbstractContextManager[Any]:
    """Run operations on values within the block, although TensorFlow may be tracing a step."""
    if _BACKEND != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    scope: AbstractContextManager[Any] = tf.init_scope()
    return scope


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of the user's layers to themselves within the block: they come again when the model runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
