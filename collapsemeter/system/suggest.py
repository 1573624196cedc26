"""Suggest the name that was meant."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that suggests the known name closest to a misspelt one.

    Parameters
    ----------
    name : str
        The name as it was written.
    known : iterable of str
        The names that exist.

    Returns
    -------
    str
        ``"; did you mean 'x'?"``, to end an error message with, or ``""`` if no name is close.

    Examples
    --------
    >>> did_you_mean("feet", ["feats", "labels"])
    "; did you mean 'feats'?"
    >>> did_you_mean("encoder", ["feats", "labels"])
    ''
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
