"""Batches as arguments of a model's call, in evaluation mode."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# What models call the switch between training and evaluation, and its value in evaluation.
MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def arguments(inputs: Any, call: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a batch, an array, or a tuple or dict of arguments, as those of a call."""
    inputs = jax.tree.map(_array, inputs)
    if isinstance(inputs, Mapping):
        return (), {**inputs, **call}
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), dict(call)


def evaluation(model: Any, method: Any = None) -> dict[str, Any]:
    """Return the switches that a model's call (or another method of linen) takes, set for evaluation."""
    name = method if isinstance(method, str) else "__call__"
    parameters = inspect.signature(
        method if callable(method) else getattr(type(model), name)
    ).parameters
    return {name: value for name, value in MODES.items() if name in parameters}


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _array(leaf: Any) -> Any:
    """Read arrays of other frameworks with NumPy; leave all else."""
    if is_array(leaf) or not hasattr(leaf, "__array__"):
        return leaf
    return np.asarray(leaf)
