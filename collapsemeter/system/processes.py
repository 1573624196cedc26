"""Processes that end with their parent, whatever ends it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, NoReturn

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PATIENCE = 5.0  # seconds that a task has to clean up
_MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows
_ENDING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
]


class EndedError(BaseException):
    """A task was interrupted because its process was told to end; not for ``except Exception``."""


@contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of fresh processes of one thread each, which end with this block and with this process, even by SIGKILL."""
    # Spawned: forking a process that has threads, as BLAS has, may hang.
    pool = _Pool(count, get_context("spawn"), _begin)
    try:
        yield pool
    except EndedError as error:
        _interrupt(pool)
        raise ValueError("a worker process was told to end (SIGTERM)") from error
    except BaseException:
        _interrupt(pool)
        raise
    finally:
        pool.shutdown()


class _Pool(ProcessPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        with _starting():  # a process is started when a task finds none that is free
            return super().submit(_unless_ended, function, *arguments, **named)


@contextmanager
def _starting() -> Iterator[None]:
    """Let processes that are started in this block use one thread each, and block signals in them."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    mask: Any = None
    if _MASKS:
        resource_tracker.ensure_running()  # starting it would unblock them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        if _MASKS:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    """Prepare a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _end_task)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _unless_ended(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """Call a function; SIGTERM, which a worker takes during tasks alone, interrupts this one and all others."""
    try:
        if _MASKS:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        if _ended:
            raise EndedError
        return function(*arguments, **named)
    finally:
        if _MASKS:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


_ended = False


def _end_task(number: int, frame: FrameType | None) -> NoReturn:
    global _ended
    _ended = True
    raise EndedError


def _interrupt(pool: ProcessPoolExecutor) -> None:
    """Interrupt the tasks of a pool, and end processes that do not end by themselves."""
    workers = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_PATIENCE)
        worker.kill()


def check_jobs(jobs: int) -> None:
    """Raise ValueError unless this machine can run so many processes."""
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: there must be at least one process")
    cores = os.cpu_count() or 1
    if jobs > max(64, 4 * cores):
        raise ValueError(f"jobs={jobs}: this machine has {cores} cores; pass about as many")
