"""What does not fit into memory is refused before it is asked for."""

from __future__ import annotations

import os


def check_memory(what: str, nbytes: float) -> None:
    """Raise if arrays are larger than the memory of this machine.

    Parameters
    ----------
    what : str
        What asks for them, with its figures.
    nbytes : float
        All bytes that are needed at once.

    Raises
    ------
    ValueError
        It says how much is needed and how much there is.

    Examples
    --------
    >>> try:
    ...     check_memory("num_classes=10**15 of 8 features", 8 * 8 * 1e15)
    ... except ValueError as error:
    ...     print(str(error).partition(";")[0])
    num_classes=10**15 of 8 features needs 59,604,645 GiB of memory
    """
    there = _physical()
    if nbytes > there:
        raise ValueError(
            f"{what} needs {nbytes / 2**30:,.0f} GiB of memory; this machine has {there / 2**30:,.0f} GiB"
        )


def _physical() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        return 2.0**40
