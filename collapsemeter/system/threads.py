"""Threads for work element by element: NumPy lets go of the interpreter's lock while it computes.

Matrix products and decompositions have threads of their own, in BLAS. The two never run at once: each would
wait for the other's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # each thread has buffers of its own, so that memory is bounded on every machine


class InOrder(Protocol):
    """Apply a function to items; the results are in their order."""

    def __call__(
        self, compute: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Iterable[Result]: ...


@contextmanager
def threads() -> Iterator[InOrder]:
    """Give a ``map`` that computes in as many threads as this process may use.

    What each item gives must depend on nothing else: then nothing depends on the threads.

    Examples
    --------
    >>> with threads() as in_order:
    ...     list(in_order(abs, [-3, 1, -2]))
    [3, 1, 2]
    """
    count = usable_threads()
    if count == 1:
        yield map
        return
    from concurrent.futures import ThreadPoolExecutor  # it imports much

    with ThreadPoolExecutor(count) as pool:

        def in_order(
            compute: Callable[[Item], Result], items: Sequence[Item], /
        ) -> Iterable[Result]:
            return pool.map(compute, items) if len(items) > 1 else map(compute, items)

        yield in_order


def usable_threads() -> int:
    """Return how many cores this process may use, at most 8; of ``OMP_NUM_THREADS`` fewer.

    Examples
    --------
    >>> 1 <= usable_threads() <= MOST
    True
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    chosen = os.environ.get("OMP_NUM_THREADS", "")  # as for the threads of BLAS
    return max(1, min(cores, MOST, int(chosen) if chosen.isdecimal() else MOST))


def check_jobs(jobs: int) -> None:
    """Raise ValueError unless this machine can run so many processes.

    Examples
    --------
    >>> check_jobs(0)
    Traceback (most recent call last):
    ValueError: jobs=0: there must be at least one process
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: there must be at least one process")
    cores = os.cpu_count() or 1
    if jobs > max(64, 4 * cores):
        raise ValueError(f"jobs={jobs}: this machine has {cores} cores; pass about as many")
