"""Where pieces are worked on: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ..system.processes import processes
from .options import check_workers

T = TypeVar("T")
R = TypeVar("R")


class Workers(Protocol):
    """Something that calls a function on tasks."""

    def each(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield the number of a task and its result, as they are done."""


class Here:
    """One task after the other, in this process."""

    def each(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield results in order."""
        for i, task in enumerate(tasks):
            yield i, function(task)


class Processes:
    """As many processes as asked for, of one thread each."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def each(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield results as they come.

        Raises
        ------
        ValueError
            If a process dies.
        """
        futures: dict[Future[R], int] = {}
        try:
            futures |= {self._pool.submit(function, task): i for i, task in enumerate(tasks)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died, perhaps for want of memory (fewer --jobs need less; a script that "
                "calls audit with jobs needs `if __name__ == '__main__':`)"
            ) from error
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def workers(jobs: int = 1, dask: str | None = None) -> Iterator[Workers]:
    """Open workers.

    Parameters
    ----------
    jobs : int
        Processes; 1 for none but this.
    dask : str, optional
        Address of the scheduler of a running cluster.

    Raises
    ------
    ValueError
        If ``jobs`` is less than 1, both are given, or the cluster cannot work.
    ImportError
        If Dask is not installed.
    """
    check_workers(jobs, dask)
    if dask is not None:
        from .cluster import cluster

        with cluster(dask) as crew:
            yield crew
    elif jobs == 1:
        yield Here()
    else:
        with processes(jobs) as pool:
            yield Processes(pool)
