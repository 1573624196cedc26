"""One place to write to: the sink that fits a destination, and several as one."""

import os
from pathlib import Path
from typing import Any, Self

from ..report.report import CollapseReport
from .base import GuardedSink, Sink, checked_run
from .csv_table import CsvSink
from .json_lines import JsonlSink
from .loggers import LoggerSink, takes
from .tensorboard_events import TensorBoardSink

# Endings that name a file, so that a slip of the pen does not make a folder of event files.
_OTHER_FILES = (".json", ".ndjson", ".tsv", ".txt", ".log", ".html", ".svg", ".png", ".parquet")


def to(destination: Any, *, run: str | None = None, prefix: str = "") -> Sink:
    """Return the sink that fits a destination.

    Parameters
    ----------
    destination : str, path or object
        A path ending in ``.jsonl`` or ``.csv``; any other path is a folder of TensorBoard events. An
        object with ``add_scalar``, ``log_metrics``, ``write_scalars`` or ``log``; a callable of
        ``(step, report)``; a sink, which is returned as it is.
    run : str, optional
        Name of the run for files, see `Fan`.
    prefix : str
        What every tag begins with, see `Fan`.

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
        return _to_path(Path(destination), run, prefix)
    if _is_sink(destination):
        sink: Sink = destination
        return sink
    if callable(getattr(destination, "add_scalar", None)):
        return TensorBoardSink(destination, prefix=prefix)
    return LoggerSink(destination, prefix=prefix)


def _to_path(path: Path, run: str | None, prefix: str) -> Sink:
    ending = path.suffix.lower()
    if ending == ".jsonl":
        return JsonlSink(path, run=run, prefix=prefix)
    if ending == ".csv":
        return CsvSink(path, run=run, prefix=prefix)
    if ending in _OTHER_FILES or path.is_file():
        raise ValueError(
            f"no sink writes {path}: expected a path ending in .jsonl or .csv, or a folder for "
            "TensorBoard events"
        )
    return TensorBoardSink(path, run=run, prefix=prefix)


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
    prefix : str
        What every tag begins with: ``"train/"``, or ``"{phase}/"`` for the phase of each report. Files have
        it behind the name of the run, so that reports of one phase and two prefixes are two lines of a
        history. ``write(step, report, prefix=...)`` gives one report another. A sink that is passed keeps
        its own.

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

    def __init__(self, *destinations: Any, run: str | None = None, prefix: str = "") -> None:
        self.run = checked_run(run)
        sinks = (to(target, run=self.run, prefix=prefix) for target in destinations)
        # A sink of someone else's, which may raise, stands behind the same guard as ours.
        self.sinks = tuple(
            sink if isinstance(sink, (GuardedSink, Fan)) else LoggerSink(sink.write)
            for sink in sinks
        )

    @property
    def failures(self) -> int:
        """Writes that did not arrive, over all destinations."""
        return sum(sink.failures for sink in self.sinks)

    def write(self, step: int, report: CollapseReport, *, prefix: str | None = None) -> None:
        """Write one report to every destination, under a prefix of its own where one is given."""
        for sink in self.sinks:
            sink.write(step, report, prefix=prefix)

    def close(self) -> None:
        """Close the destinations that need it."""
        for sink in self.sinks:
            if isinstance(sink, (Fan, TensorBoardSink)):
                sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
