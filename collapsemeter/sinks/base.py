"""The base of every sink: a failing destination never reaches the training loop, and runs have names."""

import contextlib
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from ..report.report import CollapseReport
from ..report.step import whole_step
from ..report.tags import beginning
from ..system.warning import warn


class Sink(Protocol):
    """Anything with ``write(step, report)``: what a meter, a callback or a loop hands reports to."""

    def write(self, step: int, report: CollapseReport) -> None:
        """Write one report."""


class GuardedSink(ABC):
    """A sink whose ``write`` never raises: the first failure warns, later ones are counted.

    A subclass has a ``_write`` that may raise, and a ``name`` by which the warning calls it.

    Attributes
    ----------
    failures : int
        Writes that did not arrive.
    prefix : str
        What every tag begins with, see `Fan`.

    Examples
    --------
    >>> class Memory(GuardedSink):
    ...     name = "Memory"
    ...     steps = []
    ...     def _write(self, step, report):
    ...         self.steps.append(step)
    >>> memory = Memory()
    >>> memory.write(3, CollapseReport({}))
    >>> memory.steps, memory.failures
    ([3], 0)
    """

    name: str
    failures: int = 0
    prefix: str = ""

    def write(self, step: int, report: CollapseReport, *, prefix: str | None = None) -> None:
        """Write one report; a failure is a `RuntimeWarning`, once, and never an exception.

        Parameters
        ----------
        step : int
            The user's own count of steps or epochs.
        report : CollapseReport
        prefix : str, optional
            That of this report, in place of the sink's own.
        """
        chosen = self.prefix if prefix is None else prefix

        def write() -> None:
            if not isinstance(report, CollapseReport):
                raise TypeError(
                    f"{type(report).__name__} is no report: pass write(step, report), with "
                    "CollapseReport({name: layer}) of a single layer"
                )
            more = [beginning(chosen, report.phase)] if chosen else []
            self._write(whole_step(step), report, *more)

        self._attempt(f"write step {str(step)[:100]}", write)

    @abstractmethod
    def _write(self, step: int, report: CollapseReport, prefix: str = "") -> None:
        """Write one report, or raise."""

    def _attempt(self, doing: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                text = " ".join(str(error).split())
                why = f"{type(error).__name__}: {text[:300]}".rstrip(".: ")
                warn(
                    f"{self.name} could not {doing}: {why}. Training goes on and the "
                    "values remain in the report; later failures of this sink are counted in "
                    "its `failures`, not shown",
                    stacklevel=4,  # the user's line that writes
                )


def run_in_file(run: str, prefix: str) -> str:
    """Return the run that a file has of reports with a prefix: one line of a history for each."""
    return f"{run}/{prefix.rstrip('/')}" if prefix else run


def checked_run(run: str | None) -> str:
    """Return the name of the run to write under: the one that is given, or one that no other run has."""
    if run is None:
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if not isinstance(run, str):
        raise TypeError(f"run={run!r}: name the run with a text, such as 'night-3'")
    if not run.strip():
        raise ValueError(f"run={run!r}: name the run, such as 'night-3', or leave it out")
    return run


def _lock(file: int) -> None:
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        for _ in range(100):
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)


class AppendedFile:
    """A file of lines that is opened for each write; a write that fails is taken back, and a cut line is ended first."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, so that a later chdir does not scatter the record over two files.
        self.path = Path(path).absolute()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.append("")
        except OSError as error:
            raise type(error)(f"cannot append to {self.path}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from mending and writing meanwhile, where the system has locks; wait for a second at most."""
        with self.path.open("ab") as file:
            _lock(file.fileno())
            yield

    def empty(self) -> bool:
        """Whether nothing has been written yet."""
        return self.path.stat().st_size == 0

    def append(self, text: str) -> None:
        """Add text at the end and hand it to the system; all of it, or none."""
        # A lone surrogate, possible in a name from another encoding, must not cost the whole line.
        data = text.encode("utf-8", "backslashreplace")
        if data and self.unfinished():
            data = b"\n" + data
        with self.path.open("ab", buffering=0) as file:
            before, written = os.fstat(file.fileno()).st_size, 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                # Unless another process has written behind it meanwhile.
                if written and os.fstat(file.fileno()).st_size == before + written:
                    with contextlib.suppress(OSError):
                        file.truncate(before)
                raise

    def unfinished(self) -> bytes:
        """Return the last line where it has no end, empty where it has one."""
        start, tail = self.path.stat().st_size, b""
        with self.path.open("rb") as file:
            while start and b"\n" not in tail:
                end, start = start, max(0, start - (1 << 16))
                file.seek(start)
                tail = file.read(end - start) + tail
        return tail.rpartition(b"\n")[2]

    def take_back(self, count: int) -> None:
        """Remove so many bytes from the end."""
        os.truncate(self.path, self.path.stat().st_size - count)
