"""Names in messages: the one that was meant, and several as words."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"``, to end an error message with, or ``""`` if no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(named: Iterable[str], most: int = 12) -> str:
    """Return names as words, a dozen at most."""
    names = list(named)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
