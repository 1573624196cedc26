"""Refuse what does not fit into memory before it is asked for."""

import os


def check_memory(what: str, nbytes: float) -> None:
    """Raise ValueError if ``nbytes``, needed at once for ``what``, are more than the memory of this machine."""
    physical = _physical()
    if nbytes > physical:
        raise ValueError(
            f"{what} needs {nbytes / 2**30:,.0f} GiB of memory; this machine has {physical / 2**30:,.0f} GiB"
        )


def _physical() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        return 2.0**40
