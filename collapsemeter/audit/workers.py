"""Where pieces are worked on: in this process, in several, or on a Dask cluster; and how far they are."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from ..system.escaping import printable
from ..system.processes import processes
from .cluster import cluster

R = TypeVar("R")
Advance = Callable[[int], None]


class Workers(Protocol):
    """Something that calls a function on tasks; whether its ``files`` are those of this process."""

    files: bool

    def each(
        self, function: Callable[..., R], tasks: Sequence[Any], *more: Any
    ) -> Iterator[tuple[int, R]]:
        """Yield the number of a task and its result, as they are done; ``more`` goes to every call."""


class InThisProcess:
    """One task after the other."""

    files = True

    def each(
        self, function: Callable[..., R], tasks: Sequence[Any], *more: Any
    ) -> Iterator[tuple[int, R]]:
        """Yield results in order."""
        yield from enumerate(function(task, *more) for task in tasks)


class InProcesses:
    """As many processes as asked for, of one thread each."""

    files = True

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def each(
        self, function: Callable[..., R], tasks: Sequence[Any], *more: Any
    ) -> Iterator[tuple[int, R]]:
        """Yield results as they come; raise ValueError if a process dies."""
        futures: dict[Future[R], int] = {}
        try:
            for i, task in enumerate(tasks):
                futures[self._pool.submit(function, task, *more)] = i
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
def open_workers(jobs: int = 1, dask: str | None = None) -> Iterator[Workers]:
    """Open workers: so many processes (1: this one alone), or those of a running Dask cluster."""
    if dask is not None:
        with cluster(dask) as crew:
            yield crew
    elif jobs == 1:
        yield InThisProcess()
    else:
        with processes(jobs) as pool:
            yield InProcesses(pool)


def complete(
    done: dict[int, R],
    nbytes: Sequence[int],
    work: Callable[[list[int]], Iterable[tuple[int, R]]],
    words: str,
    shown: bool,
) -> list[R]:
    """Return all results, by number: ``work`` gives those of the numbers that are left, as they come."""
    left = [i for i in range(len(nbytes)) if i not in done]
    with bar(words, sum(nbytes), shown and bool(nbytes)) as advance:
        advance(sum(nbytes[i] for i in done))
        for k, result in work(left):
            done[left[k]] = result
            advance(nbytes[left[k]])
    return [done[i] for i in range(len(nbytes))]


@contextmanager
def bar(words: str, total: int, shown: bool) -> Iterator[Advance]:
    """Show a progress bar on a terminal; yield a function that is told how much more is done."""
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
