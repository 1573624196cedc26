"""A Dask cluster as workers: whatever keeps it from working is one sentence, within ten seconds."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ..activations.array_file import first_line, required
from ..version import __version__

CONNECT = 4.0  # seconds until a scheduler answers
ANSWER = 4.0  # seconds until it, or all workers, answer a question
ABSENT = 4.0  # seconds without any worker: one that died may be started again
_LOGGERS = ("distributed", "tornado", "asyncio")
_VERSION = "__import__('collapsemeter').__version__"


@contextmanager
def cluster(address: str) -> Iterator[DaskWorkers]:
    """Connect to the scheduler of a cluster whose workers have this version of the package."""
    distributed = required("distributed", f"an audit on {address}", "dask", "Dask")

    connect = partial(distributed.Client, address, timeout=CONNECT, set_as_default=False)
    with _silent():
        try:
            distributed.comm.get_address_host_port(
                address
            )  # a client that cannot read it complains twice
            client = _within(CONNECT + 1, connect)
        except Exception as error:  # whatever answers there is no scheduler
            raise ValueError(
                f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`, and pass its address "
                f"({first_line(error)})"
            ) from error
        try:
            workers = DaskWorkers(client, address)
            workers.check()
            yield workers
        finally:
            with suppress(Exception):  # what it says no longer matters
                _within(2, lambda: client.close(timeout=1))


class DaskWorkers:
    """The workers of a Dask cluster; a task of a worker that dies is done again by another."""

    files = False

    def __init__(self, client: Any, address: str) -> None:
        self.client = client
        self._address = address
        self._seen = self._asked = time.monotonic()

    def each(
        self, function: Callable[..., Any], tasks: Sequence[Any], *more: Any
    ) -> Iterator[tuple[int, Any]]:
        """Yield results as they come; ``more`` is sent to the workers once."""
        from distributed import as_completed

        send = partial(self.client.scatter, broadcast=True, hash=False)
        more = tuple(self._answer(partial(send, value)) for value in more)
        futures = [self.submit(function, task, *more) for task in tasks]
        numbers = {future.key: i for i, future in enumerate(futures)}
        waiting = as_completed(futures, loop=self.client.loop)
        del futures  # the cluster forgets a result that nobody holds
        while not waiting.is_empty():
            ready = self._answer(waiting.next_batch)
            while ready:
                future = ready.pop()
                yield numbers[future.key], self._answer(future.result)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return a future of the call; futures among the arguments stand for their results."""
        return self.client.submit(function, *arguments, pure=False)

    def check(self) -> None:
        """Raise ValueError unless there are workers, and all of them have this version of the package."""
        while not self._any_worker():
            if time.monotonic() - self._seen > ABSENT:
                raise self._no_worker()
            time.sleep(0.1)
        try:
            versions: dict[str, Any] = self.client.sync(
                self.client._run, eval, _VERSION, on_error="return", callback_timeout=ANSWER
            )
        except (TimeoutError, OSError) as error:
            raise ValueError(
                f"a worker of the Dask cluster at {self._address} does not answer within {ANSWER:g} s"
            ) from error
        for worker, version in versions.items():
            if version != __version__:
                has = version if isinstance(version, str) else f"none ({first_line(version)})"
                raise ValueError(
                    f"worker {worker} of the Dask cluster needs collapsemeter {__version__} and has {has}: "
                    "install it where the workers run"
                )

    def _any_worker(self) -> bool:
        try:
            known = self.client.sync(self.client.scheduler.identity, callback_timeout=ANSWER)
        except (TimeoutError, OSError) as error:
            raise self._lost() from error
        return bool(known["workers"])

    def _watch(self) -> None:
        """Raise ValueError if nothing can come any more."""
        if self.client.status != "running":
            raise self._lost()
        now = time.monotonic()
        if now - self._asked < 1:
            return
        if self._any_worker():
            self._seen = time.monotonic()
        elif now - self._seen > ABSENT:
            raise self._no_worker()
        self._asked = time.monotonic()

    def _lost(self) -> ValueError:
        return ValueError(f"the Dask scheduler at {self._address} does not answer any more")

    def _no_worker(self) -> ValueError:
        return ValueError(
            f"the Dask cluster at {self._address} has no worker: start some with `dask worker {self._address}`"
        )

    def _answer(self, call: Callable[[], Any]) -> Any:
        """Return what a call of the client gives, as long as there is somebody to answer it."""
        from distributed import CancelledError, KilledWorker

        try:
            return _within(math.inf, call, self._watch)
        except (ValueError, MemoryError):
            raise
        except KilledWorker as error:
            raise ValueError(
                "workers of the Dask cluster died over the same task again and again, perhaps for want of "
                f"memory: {first_line(error)}"
            ) from error
        except CancelledError as error:
            raise self._lost() from error
        except OSError:  # of the connection, or of a file that a worker does not find
            self._watch()
            raise
        except Exception as error:  # of the cluster: a task says what is wrong in a ValueError
            raise ValueError(
                f"a task failed on the Dask cluster at {self._address} ({type(error).__name__}: "
                f"{first_line(error)})"
            ) from error


def _within(
    seconds: float, call: Callable[[], Any], watch: Callable[[], None] = lambda: None
) -> Any:
    """Return what a call gives; raise TimeoutError after that time, or what ``watch`` raises: Dask leaves waits open."""
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value, error = done.get(timeout=min(0.2, seconds))
        except Empty:
            watch()
            continue
        if error is not None:
            raise error
        return value
    raise TimeoutError(f"nothing came within {seconds:g} s")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what goes wrong on the cluster from being logged, too."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
