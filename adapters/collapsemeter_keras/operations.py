"""Keras' operations for row sample and sums, on the backend that is in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope

from collapsemeter.stats.sampling import (
    GROUPS,
    Wrap,
    dealt_groups,
    drawn_slots,
    low_32_bits,
    uint32,
)
from collapsemeter.stats.sketch import row_hashes

Tensor = Any  # of the backend
Key = tuple[str, int]  # a layer, and which of its calls in one forward
BACKEND = keras.backend.backend()
_JAX = BACKEND == "jax"
# JAX has no 64-bit integers unless the user asks for them: uint32 counts to 4e9 and then stays there.
COUNT = "uint32" if _JAX else "int64"
FULL = 2**32 - 1
_WRAP: Wrap = uint32 if _JAX else low_32_bits


def dtype_of(x: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(keras.backend.standardize_dtype(x.dtype))


def detached(value: Any) -> Any:
    """Return a tensor without its gradient, and with its mask."""
    if not ops.is_tensor(value):
        return value
    mask, tensor = get_keras_mask(value), ops.stop_gradient(value)
    if mask is not None and get_keras_mask(tensor) is None:
        set_keras_mask(tensor, mask)
    return tensor


def is_writable(variable: Any) -> bool:
    """Whether a step may write to a variable here: on JAX only within a scope that has its value."""
    if not _JAX:
        return True
    scope = get_stateless_scope()
    return scope is not None and scope.get_current_value(variable) is not None


def is_traced(value: Any) -> bool:
    """Whether a tensor stands for values that a compiled program of JAX will have."""
    if not _JAX:
        return False
    import jax

    return isinstance(value, jax.core.Tracer)


def is_foreign(value: Any) -> bool:
    """Whether a tensor belongs to a compiled function that is over, or that we are not in."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        graph = None if not tf.is_tensor(value) else getattr(value, "graph", None)
        return graph is not None and graph is not tf.compat.v1.get_default_graph()
    if not is_traced(value):
        return False
    import jax

    try:
        jax.numpy.asarray(value) + 0
    except jax.errors.UnexpectedTracerError:
        return True
    return False


def run_if(condition: Tensor | bool, change: Callable[[], None], variables: Sequence[Any]) -> None:
    """Run a function that changes these variables where a scalar is true, inside a compiled step too."""
    if isinstance(condition, bool):
        if condition:
            change()
        return
    if not _JAX:

        def run() -> Tensor:
            change()
            return ops.convert_to_tensor(0)

        ops.cond(condition, run, lambda: ops.convert_to_tensor(0))
        return
    # A branch of JAX has no side effects: values go in and come out.
    outer = get_stateless_scope()

    def changed(values: list[Tensor]) -> list[Tensor]:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)) as scope:
            if outer is not None:
                scope.state_mapping = outer.state_mapping | scope.state_mapping
            change()
        return [scope.get_current_value(variable) for variable in variables]

    import jax.numpy as jnp
    from jax import lax

    # A loop that runs once or never: XLA updates what it carries in place, and copies what a branch gives.
    before = [variable.value for variable in variables]
    _, after = lax.while_loop(
        lambda carried: carried[0],
        lambda carried: (jnp.zeros_like(carried[0]), changed(carried[1])),
        (condition, before),
    )
    for variable, value in zip(variables, after, strict=True):
        variable.assign(value)


def run_either(
    condition: Tensor | bool, change: Callable[[], None], instead: Callable[[], None]
) -> None:
    """Run one of two functions; a condition that only TensorFlow's graph knows is a tensor."""
    if isinstance(condition, bool):
        (change if condition else instead)()
        return

    def run(function: Callable[[], None]) -> Tensor:
        function()
        return ops.convert_to_tensor(0)

    ops.cond(condition, lambda: run(change), lambda: run(instead))


def counted(flags: Tensor) -> Tensor:
    """Return the number of true flags; a sum may widen or narrow integers, as the backend likes."""
    return ops.cast(ops.sum(ops.cast(flags, COUNT)), COUNT)


def saturated(total: Tensor, part: Tensor) -> Tensor:
    """Return ``total + part``; a uint32 that would wrap around stays full, which a report refuses."""
    new = total + part
    return ops.where(new < total, ops.cast(FULL, COUNT), new) if _JAX else new


def hashed(numbers: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return bucket and sign of each row in a sketch, see `collapsemeter.stats.sketch.row_hashes`."""
    buckets, negative = row_hashes(numbers, size, seed, _WRAP)
    return ops.cast(buckets, "int32"), negative


def dealt(numbers: Tensor) -> Tensor:
    """Return the group of each row among 16, see `collapsemeter.stats.sampling.dealt_groups`."""
    return ops.cast(dealt_groups(numbers, GROUPS, _WRAP), "int32")


def sample_slots(numbers: Tensor, usable: Tensor, size: int, seed: int) -> Tensor:
    """Return the slot of each row, as `collapsemeter.stats.sampling.reservoir_slots` does; ``size`` is the bin."""
    drawn = drawn_slots(numbers, seed, _WRAP)
    slots = ops.where(numbers < size, numbers, drawn)
    full = ops.cast(size, COUNT)
    slots = ops.cast(ops.where(usable, ops.minimum(slots, full), full), "int32")
    # Of two rows drawn for one slot the later replaces the earlier, as if they came one by one.
    order = ops.cumsum(ops.ones_like(slots), axis=0)
    last = ops.segment_max(order, slots, num_segments=size + 1)
    wins = ops.take(last, slots, axis=0) == order
    return ops.where(wins, slots, ops.cast(size, "int32"))
