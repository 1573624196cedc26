"""Warnings that never become exceptions in somebody's training loop."""

import contextlib
import warnings

from .escaping import printable
from .terminal import say


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn without ever raising, also where the user has turned warnings into errors."""
    text = printable(message)
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)
    except RuntimeWarning:
        with contextlib.suppress(OSError, ValueError):  # standard error is closed
            say(f"RuntimeWarning: {text}", error=True)
