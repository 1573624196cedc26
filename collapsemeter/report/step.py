"""The step of a report, a count of steps or epochs."""

import contextlib


def whole_step(step: float) -> int:
    """Return a step as a whole number: 3.5 epochs, cut to 3, would be on the point of another report."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if (number := int(step)) == step:
            return number
    raise ValueError(
        f"{str(step)[:100]} is not a whole number: pass a count of steps or epochs, such as global_step"
    )
