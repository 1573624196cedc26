"""The meter's place among the callbacks of a fit: before those that read its values."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from collapsemeter.system.warning import warn

_WRITERS = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)


def move_before_readers(meter: keras.callbacks.Callback, is_value: Callable[[str], bool]) -> None:
    """Move the meter before the first callback of its list that monitors or writes its values.

    Keras hands the logs of an epoch from one callback to the next: who stands before the meter would not
    find its values. Only the list of this fit is changed, and not the user's.
    """
    callbacks = _list_of(meter)
    place = next((n for n, part in enumerate(callbacks) if part is meter), 0)
    before = callbacks[:place]
    first = next((n for n, part in enumerate(before) if _reads(part, is_value)), None)
    if first is None:
        return
    if any(isinstance(part, keras.callbacks.SwapEMAWeights) for part in before[first:]):
        warn(
            f"{type(before[first]).__name__} reads the meter's values and stands before SwapEMAWeights, and the "
            "meter behind both: put the meter before it, or both behind SwapEMAWeights"
        )
        return
    # Keras goes through the list by position now: what stood before has had its turn, and moves up by one.
    callbacks.insert(first, callbacks.pop(place))


def _reads(callback: Any, is_value: Callable[[str], bool]) -> bool:
    monitored = getattr(callback, "monitor", None)
    return isinstance(callback, _WRITERS) or (isinstance(monitored, str) and is_value(monitored))


def _list_of(meter: keras.callbacks.Callback) -> list[Any]:
    """Return the list of callbacks that the meter is being given its model in; empty where there is none."""
    frame = inspect.currentframe()
    try:
        while frame is not None:  # Keras tells a callback nothing of the others
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                return owner.callbacks if any(part is meter for part in owner.callbacks) else []
            frame = frame.f_back
    finally:
        del frame
    return []
