"""``collapsemeter show`` and ``compare``: reports from files as text, JSON and HTML."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from ..comparison.compare import compare
from ..metrics.catalogue import METRICS
from ..report.history import Entries, History, read_history
from ..report.origin import origin
from ..report.report import TABLE, CollapseReport
from ..system.escaping import printable
from ..system.suggest import did_you_mean
from ..system.terminal import say, say_json


@dataclass(frozen=True)
class Wish:
    """What to print and write of a report.

    Parameters
    ----------
    json, quiet : bool
        Print JSON and nothing else; print one line.
    html : str, optional
        Where to write the HTML report.
    metrics : sequence of str
        Columns of the table.
    phase : str, optional
        Which reports of a history to take, where it holds several phases.
    """

    json: bool = False
    quiet: bool = False
    html: str | None = None
    metrics: Sequence[str] = TABLE
    phase: str | None = None


def show(path: str, wish: Wish) -> None:
    """Print the report in a file, or the last one of a history, and write it as HTML.

    Parameters
    ----------
    path : str
        A report as ``to_json`` returns it; a name that ends in ``.jsonl`` is a history.
    wish : Wish

    Raises
    ------
    ValueError
        If the file does not read, a metric is unknown, or phases are mixed and none is chosen.
    ImportError
        If HTML is asked for and Jinja or matplotlib is missing.
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from collapsemeter import CollapseReport, LayerReport
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "report.json"
    >>> _ = file.write_text(CollapseReport({"fc": LayerReport({"nc1_trace_ratio": 0.25})}).to_json())
    >>> show(str(file), Wish(quiet=True))
    fc (frozen-eval): NC1 partly collapsed: 20 % of the variance is within classes; NC2, NC3 and NC4 not judged: not measured
    """
    unknown = [name for name in wish.metrics if name not in METRICS]
    if unknown:
        raise ValueError(
            f"no metric is named {unknown[0]!r}; there are {', '.join(METRICS)}"
            + did_you_mean(unknown[0], METRICS)
        )
    history = _history(path, wish.phase)
    report = history[-1][1]
    if wish.html is not None:
        from ..html import write_html

        write_html(wish.html, history)
    if wish.json:
        say_json(report.to_dict(), indent=2)
    elif wish.quiet:
        say(line(report))
    else:
        say(words(history, wish))
        return
    say_notes(history)


def line(report: CollapseReport) -> str:
    """Return what a report is of and its summary, in one line."""
    return "; ".join([*origin(report)[:1], report.summary()])


def words(history: Entries, wish: Wish) -> str:
    """Return the last report of a history as text: its rows, a summary, a table, and what the history lacks."""
    width = _width()
    history = History(history)
    step, report = history[-1]
    lines = [
        part
        for text in [*origin(report), report.summary()]
        for part in textwrap.wrap(text, width, subsequent_indent="  ")
    ]
    if len(history) > 1:
        lines.append(f"epoch {step}, the last of {len(history.last)} reports")
    lines += textwrap.wrap(history.earlier_runs(), width, subsequent_indent="  ")
    lines += ["", report.table(wish.metrics, width)]
    for note in history.notes:
        lines += textwrap.wrap(f"! {printable(note)}", width, subsequent_indent="  ")
    overhead = report.provenance.get("overhead")
    if isinstance(overhead, float):
        lines += ["", f"measuring took {overhead:.1%} of the training's time"]
    if wish.html is not None:
        lines += ["", f"HTML report: {wish.html}"]
    return "\n".join(lines)


def say_notes(history: Entries) -> None:
    """Say on standard error what a history lacks, where standard output is for something else."""
    for note in History(history).notes:
        say(f"collapsemeter: {printable(note)}", error=True)


def _width() -> int:
    """Columns of the terminal; 80 where there is none, and never too few for a table."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def _history(path: str, phase: str | None) -> History:
    if os.fspath(path).lower().endswith(".jsonl"):
        history = read_history(path)
    else:
        history = History([(0, CollapseReport.load(path))])
    phases = sorted({report.phase for _, report in history})
    if phase is not None and phase not in phases:
        raise ValueError(
            f"{path} holds no report of phase {phase!r}, but of {', '.join(phases)}"
            + did_you_mean(phase, phases)
        )
    if phase is None and len(phases) > 1:
        raise ValueError(
            f"{path} holds reports of the phases {', '.join(phases)}, which are different "
            f"quantities: choose one with --phase {phases[0]}"
        )
    return history if phase is None else history.of_phase(phase)


def compare_files(path: str, reference: str, wish: Wish) -> None:
    """Print a report beside another one, and write both as HTML.

    Parameters
    ----------
    path, reference : str
        Reports as ``to_json(matrices=True)`` returns them, or histories, see `show`.
    wish : Wish
        ``metrics`` are listed by layer; the overview without any.

    Raises
    ------
    ValueError, ImportError, OSError
        As `show`; also if a report has no layer.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from collapsemeter import ClassMoments, CollapseReport, measure
    >>> moments = ClassMoments.from_batch([[0.0], [0.1], [1.0], [1.1]], [0, 0, 1, 1], 2)
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "report.json"
    >>> _ = file.write_text(CollapseReport({"fc": measure(moments)}).to_json(matrices=True))
    >>> compare_files(str(file), str(file), Wish(quiet=True))
    fc (reference layer fc): collapsed to the reference: 0.99 % of the variance is within classes; class means are 0 % as far from the reference as random ones from a simplex ETF
    """
    history = _history(path, wish.phase)
    other = _history(reference, wish.phase)[-1][1]
    metrics = [] if tuple(wish.metrics) == TABLE else wish.metrics
    comparison = compare(history[-1][1], other)
    if wish.html is not None:
        from ..html import write_html

        write_html(wish.html, history, comparison=comparison)
    if wish.json:
        say_json(comparison.to_dict(), indent=2)
    elif wish.quiet:
        say(comparison.summary())
    else:
        say(comparison.table(metrics, _width()))
    say_notes(history)
