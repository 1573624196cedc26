"""The name of a run, which every record carries: one of its own, or the one that is resumed."""

from __future__ import annotations

from ..report.history import new_run


def checked_run(run: str | None) -> str:
    """Return the run to write under: the one that is given, or a new one.

    Raises
    ------
    TypeError, ValueError
        If it is no text, or an empty one.

    Examples
    --------
    >>> checked_run("night-3"), checked_run(None) == checked_run(None)
    ('night-3', False)
    """
    if run is None:
        return new_run()
    if not isinstance(run, str):
        raise TypeError(f"run={run!r}: name the run with a text, such as 'night-3'")
    if not run.strip():
        raise ValueError(f"run={run!r}: name the run, such as 'night-3', or leave it out")
    return run
