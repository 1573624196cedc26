"""Variables that a compiled step may write to, and that no strategy mirrors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import keras

from collapsemeter.adapter.memory import Holding

from .operations import BACKEND, dtype_of

_T = TypeVar("_T")


class LayerVariables(NamedTuple):
    """The variables of one layer."""

    sums: dict[str, keras.Variable]
    rows: keras.Variable
    dtype: str  # of the features
    holding: Holding
    has_groups: bool = True  # or what was loaded had none


class SampleVariables(NamedTuple):
    """Variables that all layers share whose samples have one size."""

    ids: keras.Variable
    labels: keras.Variable
    predictions: keras.Variable


def zeros(shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
    """Return a variable of zeros that is not trained."""
    # Integers of every backend start at zero; sample ids are stored one up, so that zero is none.
    return _outside_of_strategies(
        lambda: keras.Variable(
            keras.initializers.Zeros(),
            shape=shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            name=name,
        )
    )


def nbytes_of(variables: Iterable[keras.Variable]) -> int:
    """Return the size of variables in bytes."""
    total = 0
    for variable in variables:
        digits = "".join(c for c in dtype_of(variable) if c.isdigit())
        total += math.prod(variable.shape) * int(digits or 8) // 8
    return total


def _outside_of_strategies(make: Callable[[], _T]) -> _T:
    """Make variables that no tf.distribute strategy mirrors or sums up on reading.

    Replicas count into one place, one after the other; a mirrored shift would be a sum of shifts. A
    strategy's scope belongs to its thread, so another thread is outside of it.
    """
    if BACKEND != "tensorflow":
        return make()
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return make()
    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(make).result()
