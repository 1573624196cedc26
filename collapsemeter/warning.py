"""Warnings that never become exceptions in somebody's training loop."""

from __future__ import annotations

import sys
import warnings


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn without ever raising, also where the user has turned warnings into errors.

    Examples
    --------
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     warn("the disk is full")
    """
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=stacklevel)
    except RuntimeWarning:
        print(f"RuntimeWarning: {message}", file=sys.stderr)
