"""Where pieces are worked on: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

from ..activations.array_file import first_line

T = TypeVar("T")
R = TypeVar("R")
DASK_PATIENCE = "10s"  # until a scheduler answers
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
        futures: dict[Future[R], int] = {}
        try:
            with _one_thread_each():  # a process is started when a task finds none that is free
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


class Dask:
    """The workers of a Dask cluster; a task of a worker that dies is done again by another."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def each(
        self, function: Callable[..., R], tasks: Sequence[Any], *more: Any
    ) -> Iterator[tuple[int, R]]:
        """Yield results as they come; ``more`` are further arguments of every call.

        Raises
        ------
        ValueError
            If workers die again and again.
        """
        numbers: dict[str, int] = {}
        futures = []
        for i, task in enumerate(tasks):
            futures.append(self.submit(function, task, *more))
            numbers[futures[-1].key] = i
        for future in self.completed(futures):
            yield numbers[future.key], self.result(future)

    def completed(self, futures: list[Any]) -> Iterator[Any]:
        """Yield futures as they are done; raise the error of one that failed.

        The list is emptied: the cluster forgets a result that nobody holds or needs any more.
        """
        from distributed import as_completed as completed

        waiting = completed(futures, loop=self.client.loop)
        futures.clear()
        for future in waiting:
            if future.status != "finished":
                self.result(future)
            yield future
            del future

    def result(self, future: Any) -> Any:
        """Return what a future gave."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise ValueError(
                "workers of the Dask cluster died over the same task again and again, perhaps for want of "
                f"memory: {first_line(error)}"
            ) from error

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a future of the call; futures among the arguments stand for their results."""
        return self.client.submit(function, *arguments, pure=False)

    def everywhere(self, value: Any) -> Any:
        """Send a value to the workers once; return what stands for it in a call."""
        return self.client.scatter(value, broadcast=True, hash=False)


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
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
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
        client = Client(address, timeout=DASK_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`, and pass its address "
            f"({first_line(error)})"
        ) from error
    with client:
        yield client
