"""The training error of an epoch, which a report may carry: it is counted by the user's own loop."""

from numbers import Real
from typing import Any, TypeGuard

RECORDED_ERROR = "training_error"
"""The key of a report's provenance that holds it."""


def is_error(value: Any) -> TypeGuard[float]:
    """Return whether a value is a share of rows."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def checked_error(error: Any) -> float:
    """Return a training error, a share of rows; ValueError for anything else."""
    if not is_error(error):
        raise ValueError(
            f"training error {error!r}: pass the share of rows that are decided wrongly, such as 0.02 for 2 %"
        )
    return float(error)
