"""Where pieces are worked on: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
        futures = {self._pool.submit(function, task): i for i, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died, perhaps for want of memory: run again with --resume and fewer "
                "--jobs; what was counted is kept"
            ) from error
        finally:
            for future in futures:
                future.cancel()


class Dask:
    """The workers of a Dask cluster; a task of a worker that dies is done again by another."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def each(self, function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield results as they come."""
        futures = {self.submit(function, task): i for i, task in enumerate(tasks)}
        for future in self.completed(list(futures)):
            yield futures[future], future.result()

    def completed(self, futures: Sequence[Any]) -> Iterator[Any]:
        """Yield futures as they are done."""
        from distributed import as_completed as completed

        yield from completed(futures, loop=self.client.loop)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a future of the call; futures among the arguments stand for their results."""
        return self.client.submit(function, *arguments, pure=False)


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
        If ``jobs`` is less than 1, both are given, or no scheduler answers.
    ImportError
        If Dask is not installed.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: there must be at least one process")
    if dask is not None:
        if jobs != 1:
            raise ValueError(f"jobs={jobs} and dask={dask!r}: choose one of them")
        with _client(dask) as client:
            yield Dask(client)
    elif jobs == 1:
        yield Here()
    else:
        with _one_thread_each(), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            yield Processes(pool)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started in this block use one thread each for matrix products."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _client(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"an audit on {address} needs Dask: pip install 'collapsemeter[dask]'"
        ) from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`, and pass its address "
            f"({error})"
        ) from error
    with client:
        yield client
