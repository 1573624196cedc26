"""Steps of JAX, which write to nothing: what was counted goes into the state that they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    from .state import StreamSums

NO_PLACE = (
    "{model}.metrics leaves out the model's own metrics, and JAX "
    "throws away what a step writes elsewhere: add `super().metrics` to what it returns, or measure with probe= or "
    "observe()"
)
DROPPED = (
    "{model}.{step} does not return the metrics variables that `stateless_compute_loss` gave back, and with them "
    "what was counted: return them in its state"
)


def with_deferred(
    model: keras.Model, sums: StreamSums, result: Any, count: Callable[[], None]
) -> Any:
    """Return a step's logs and state, the latter with what was counted outside of every scope.

    Raises
    ------
    ValueError
        If the state has no place for it.
    """
    logs, state = result
    *before_metrics, metrics = state
    start = _place_of(model, sums, metrics)
    end = start + len(sums.variables)
    values = [*metrics]
    values[start:end] = sums.counted_in(values[start:end], count)
    return logs, (*before_metrics, type(metrics)(values))


def drops(model: keras.Model, sums: StreamSums, before: Any, result: Any) -> bool:
    """Whether a step that counted a batch returns the statistics that it was given."""
    passed, returned = before[-1], result[1][-1]
    try:
        start = _place_of(model, sums, returned)
    except ValueError:
        return True
    place = start + next(n for n, part in enumerate(sums.variables) if part is sums.batches)
    return returned[place] is passed[place]


def _place_of(model: keras.Model, sums: StreamSums, values: Any) -> int:
    """Return where a stream's statistics begin among the values of a model's metrics."""
    variables = model.metrics_variables
    start = next((n for n, part in enumerate(variables) if part is sums.variables[0]), None)
    if start is None or len(values) != len(variables):
        raise ValueError(NO_PLACE.format(model=type(model).__name__))
    return start
