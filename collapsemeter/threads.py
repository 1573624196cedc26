"""Work on arrays in threads: NumPy lets go of the interpreter's lock while it computes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")

MOST = 8  # threads: each has buffers of its own, so that the memory is bounded on every machine


def usable_cores() -> int:
    """Return how many cores this process may use, at most 8.

    Examples
    --------
    >>> 1 <= usable_cores() <= MOST
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST)
    return min(os.cpu_count() or 1, MOST)


def in_threads(compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Return the results in the order of the items, computed by as many threads as there are cores.

    Few results wait at a time. What they are does not depend on the threads, if each depends on its item alone.

    Parameters
    ----------
    compute : callable
        Of one item; safe to call from several threads.
    items : iterable

    Examples
    --------
    >>> list(in_threads(abs, [-3, 1, -2]))
    [3, 1, 2]
    """
    cores = usable_cores()
    items = list(items)
    if cores == 1 or len(items) < 2:
        yield from map(compute, items)
        return
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(compute, item))
                if len(waiting) > 2 * cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def beside(
    compute: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Iterator[Future[Result]]:
    """Compute something in a thread of its own while the body of ``with`` runs.

    Examples
    --------
    >>> with beside(sum, [1, 2]) as total:
    ...     product = 1 * 2
    >>> total.result()
    3
    """
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(compute, *args, **kwargs)
