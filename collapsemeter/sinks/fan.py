"""One place to write to: the sink that fits a destination, and several as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from ..report.report import CollapseReport
from .base import GuardedSink, Sink, checked_run
from .csv_table import CsvSink
from .event_files import TensorBoardSink
from .json_lines import JsonlSink
from .loggers import LoggerSink, takes

# Endings that name a file, so that a slip of the pen does not make a folder of event files.
_OTHER_FILES = (".json", ".ndjson", ".tsv", ".txt", ".log", ".html", ".svg", ".png", ".parquet")


def to(destination: Any, *, run: str | None = None) -> Sink:
    """Return the sink that fits a destination.

    Parameters
    ----------
    destination : str, path or object
        A path ending in ``.jsonl`` or ``.csv``; any other path is a folder of TensorBoard events. An
        object with ``add_scalar``, ``log_metrics``, ``write_scalars`` or ``log``; a callable of
        ``(step, report)``; a sink, which is returned as it is.
    run : str, optional
        Name of the run for files, see `Fan`.

    Returns
    -------
    Sink

    Raises
    ------
    ValueError
        If the path is that of a file no sink writes.
    TypeError
        If the object can be written to in none of these ways.

    Examples
    --------
    >>> import tempfile
    >>> to(Path(tempfile.mkdtemp()) / "run.jsonl").name.endswith("run.jsonl)")
    True
    >>> to(lambda step, report: print(step, list(report))).write(3, CollapseReport({}))
    3 []
    """
    if isinstance(destination, (str, os.PathLike)):
        return _to_path(Path(destination), run)
    if _is_sink(destination):
        sink: Sink = destination
        return sink
    if callable(getattr(destination, "add_scalar", None)):
        return TensorBoardSink(destination)
    return LoggerSink(destination)


def _to_path(path: Path, run: str | None) -> Sink:
    ending = path.suffix.lower()
    if ending == ".jsonl":
        return JsonlSink(path, run=run)
    if ending == ".csv":
        return CsvSink(path, run=run)
    if ending in _OTHER_FILES or path.is_file():
        raise ValueError(
            f"no sink writes {path}: expected a path ending in .jsonl or .csv, or a folder for "
            "TensorBoard events"
        )
    return TensorBoardSink(path, run=run)


def _is_sink(destination: Any) -> bool:
    """Whether it has ``write(step, report)``; an open file has a ``write`` too, of one argument."""
    write = getattr(destination, "write", None)
    return callable(write) and not isinstance(destination, type) and takes(write, 0, {})


class Fan:
    """Several destinations as one sink; one that fails never stops the others.

    Parameters
    ----------
    *destinations : str, path or object
        Whatever `to` takes.
    run : str, optional
        Name of the run, which every record in a file carries. To resume a run, pass the name it had:
        its records go on as one line, and of two of one step the later one counts. Without a name a
        new run begins, which no line joins to those that the files hold already. Trackers have runs of
        their own, and a sink that is passed keeps the name it has.

    Attributes
    ----------
    sinks : tuple of sinks, in the order given
    run : str
        The name given, or a new one: keep it with a checkpoint, to resume.

    Raises
    ------
    TypeError, ValueError, ImportError, OSError
        As `to` does, for the first destination that cannot be used.

    Examples
    --------
    >>> fan = Fan(lambda step, report: print("one", step), lambda step, report: print("two", step))
    >>> fan.write(1, CollapseReport({}))
    one 1
    two 1
    """

    def __init__(self, *destinations: Any, run: str | None = None) -> None:
        self.run = checked_run(run)
        self.sinks = tuple(_guarded(to(target, run=self.run)) for target in destinations)

    @property
    def failures(self) -> int:
        """Writes that did not arrive, over all destinations."""
        return sum(sink.failures for sink in self.sinks)

    def write(self, step: int, report: CollapseReport) -> None:
        """Write one report to every destination."""
        for sink in self.sinks:
            sink.write(step, report)

    def close(self) -> None:
        """Close the destinations that need it."""
        for sink in self.sinks:
            if isinstance(sink, (Fan, TensorBoardSink)):
                sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _guarded(sink: Sink) -> GuardedSink | Fan:
    """Put a sink of someone else's, which may raise, behind the same guard as ours."""
    return sink if isinstance(sink, (GuardedSink, Fan)) else LoggerSink(sink.write)
