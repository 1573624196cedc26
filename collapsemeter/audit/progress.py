"""Progress bars on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..system.escaping import printable

Advance = Callable[[int], None]


@contextmanager
def bar(words: str, total: int, shown: bool) -> Iterator[Advance]:
    """Show a progress bar; yield a function that is told how much more is done.

    Parameters
    ----------
    words : str
        What is done.
    total : int
        In whatever unit.
    shown : bool
        Whether to show it at all.

    Examples
    --------
    >>> with bar("counting", 10, shown=False) as advance:
    ...     advance(10)
    """
    if not (shown and sys.stderr.isatty()):  # a log wants no bars
        yield lambda count: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    # It goes when it is done: what remains on the screen is the report.
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(printable(words)), total=total)
        yield lambda count: progress.advance(task, count)
