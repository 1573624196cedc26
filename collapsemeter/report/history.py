"""Reports of one or several runs in order, and what must be said of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from ..metrics.layer import to_json_value
from ..system.escaping import printable
from .file import in_utf8, line_fields, read_json
from .report import CollapseReport, built
from .step import whole_step
from .training_error import RECORDED_ERROR
from .trends import FALLING, Onset, Trend, terminal_phase, trends

Entry = tuple[int, CollapseReport]
Entries = Sequence[Entry]

_LISTED = 5


class History(tuple[Entry, ...]):
    """Steps and reports, run after run, each run in the order of its steps.

    A run is what one sink wrote; reports carry its name in ``provenance["run"]``. Steps of two runs are
    never points of one line. The run that wrote last stands last, and of two reports of one step in one
    run the later one is kept. Entries come in the order in which they were written. Reports without a
    run belong to one; where steps occur twice among them, a step that goes back starts another.

    Parameters
    ----------
    entries : iterable of (int, CollapseReport)
        Steps, or epochs, and reports.
    notes : iterable of str
        What must be said besides.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> layers = [{"fc": LayerReport({"nc1_pinv": 0.5**epoch})} for epoch in range(5)]
    >>> history = History((epoch, CollapseReport(layers[epoch])) for epoch in range(5))
    >>> round(history.trends()["fc"]["nc1_pinv"].slope, 4)
    -0.6931
    """

    notes: tuple[str, ...]
    """Warnings about the file: lines that do not read, runs in which steps were written twice."""

    def __new__(cls, entries: Iterable[Entry], notes: Iterable[str] = ()) -> Self:
        written = [(whole_step(step), report) for step, report in entries]
        nameless = [(step, report.phase) for step, report in written if not run_of(report)]
        if len(set(nameless)) < len(nameless):
            written = name_runs(written)
        ordered, replaced = _in_order(written)
        self = super().__new__(cls, ordered)
        earlier = entries.notes if isinstance(entries, History) else ()
        self.notes = (*earlier, *notes, *replaced)
        return self

    @property
    def runs(self) -> dict[str, list[Entry]]:
        """The reports of every run by its name, the last run last."""
        groups: dict[str, list[Entry]] = {}
        for step, report in self:
            groups.setdefault(run_of(report), []).append((step, report))
        return groups

    @property
    def last(self) -> list[Entry]:
        """The reports of the last run."""
        return list(self.runs.values())[-1]

    def of_phase(self, phase: str) -> History:
        """Return the reports of one phase, with the notes of all."""
        return History((entry for entry in self if entry[1].phase == phase), self.notes)

    def terminal_phase(self, errors: Mapping[int, float] | None = None) -> Onset:
        """Return where the terminal phase of the last run begins: its first step at zero training error.

        Nothing is guessed from the metrics: NC4 and nearest-centre accuracy are not the network's error.

        Parameters
        ----------
        errors : mapping of int to float, optional
            Training error, a share of rows, by step; by default what `CollapseReport.with_training_error`
            recorded.

        Returns
        -------
        Onset
            ``step``, None where none is known, and ``words`` that say what it rests on.

        Raises
        ------
        ValueError
            If an error is no share.

        References
        ----------
        Papyan, Han & Donoho 2020.

        Examples
        --------
        >>> history = History([(epoch, CollapseReport({})) for epoch in range(3)])
        >>> history.terminal_phase({0: 0.5, 1: 0.0, 2: 0.0}).step
        1
        """
        return terminal_phase(self.last, errors)

    def trends(
        self,
        since: int | None = None,
        metrics: Sequence[str] = FALLING,
        layers: Sequence[str] | None = None,
    ) -> dict[str, dict[str, Trend]]:
        """Return how fast metrics fall over the last run: slopes of their logarithms against steps, by least squares.

        The 95 % interval averages over how much neighbouring reports deviate from the line together, see
        the documents for what it covers. Reports in which a metric is zero or undefined are left out and counted.

        Parameters
        ----------
        since : int, optional
            The first step; by default that of the terminal phase, or of the run where that is not known.
        metrics : sequence of str
            All that cannot be negative if left out.
        layers : sequence of str, optional
            All if left out.

        Returns
        -------
        dict of str to dict of str to Trend
            By layer and metric: ``slope``, ``low``, ``high``, ``r``, ``points``, ``left_out``, and ``why`` there
            is no slope, for which four positive values are needed.

        Examples
        --------
        >>> from collapsemeter import LayerReport
        >>> entries = [(e, CollapseReport({"fc": LayerReport({"nc1_pinv": 2.0})})) for e in range(3)]
        >>> History(entries).trends()["fc"]["nc1_pinv"].why
        'it needs 4 reports with a positive value, there are 3'
        """
        since = self.terminal_phase().step if since is None else since
        return trends(self.last, since, metrics, layers)

    def over_time(self) -> dict[str, Any]:
        """Return the terminal phase and all trends as plain values, ready for JSON; empty where the last run has one report."""
        if len(self) == 0 or len(self.last) < 2:
            return {}
        onset = self.terminal_phase()
        slopes = {
            layer: {metric: trend._asdict() for metric, trend in trends.items()}
            for layer, trends in self.trends(onset.step).items()
        }
        record: dict[str, Any] = to_json_value(
            {"terminal_phase": onset._asdict(), "trends": slopes}
        )
        return record

    def earlier_runs(self) -> str:
        """Return in words which runs stand before the last one; empty where there is none."""
        earlier = list(self.runs.items())[:-1]
        if not earlier:
            return ""
        names = [f"{_called(run)} ({_epochs(entries)})" for run, entries in earlier]
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        count = "1 earlier run" if len(names) == 1 else f"{len(names)} earlier runs"
        return f"{count}, which no line joins: {', '.join(names[-_LISTED:])}{more}"


def read_history(path: str | os.PathLike[str]) -> History:
    """Return the reports in the JSON lines that `JsonlSink` wrote; lines that do not read are counted in ``notes``.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    History

    Raises
    ------
    ValueError
        If no line reads.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from collapsemeter.sinks import JsonlSink
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> JsonlSink(path).write(3, CollapseReport({}).with_training_error(0.0))
    >>> read_history(path).terminal_phase().step
    3
    """
    source = os.fspath(path)
    entries, wrong = [], []
    for number, line in enumerate(in_utf8(Path(path).read_bytes()).split(b"\n"), start=1):
        if line.strip():
            try:
                entries.append(_entry(line, f"{source}, line {number}"))
            except ValueError as error:
                wrong.append(str(error))
    if not entries:
        empty = f"{source} holds no report: pass a history that JsonlSink wrote"
        raise ValueError(wrong[0] if wrong else empty)
    named = name_runs(entries)
    several = len({run_of(report) for _, report in named}) > 1
    return History(named if several else entries, _left_out(wrong, len(entries)))


def _entry(line: bytes, source: str) -> Entry:
    fields = read_json(line, source, line_fields)
    step = fields.pop("step")
    about = {key: fields.pop(key) for key in ("run", RECORDED_ERROR) if key in fields}
    if about:
        fields["provenance"] = about
    return step, built(fields)


def _left_out(wrong: list[str], read: int) -> list[str]:
    if not wrong:
        return []
    lines = len(wrong) + read
    were = f"line{'' if lines == 1 else 's'} {'was' if len(wrong) == 1 else 'were'}"
    return [f"{len(wrong)} of {lines} {were} left out: {wrong[0]}"]


def run_of(report: CollapseReport) -> str:
    """Return the run a report belongs to, empty where it names none."""
    run = report.provenance.get("run")
    return run if isinstance(run, str) else ""


def of_run(report: CollapseReport, run: str) -> CollapseReport:
    """Return the report as one of a run."""
    return replace(report, provenance={**report.provenance, "run": run})


def name_runs(entries: Iterable[Entry]) -> list[Entry]:
    """Name the runs of reports that have none: a step that goes back, in its phase, starts another."""
    named: list[Entry] = []
    count, reached = 1, dict[str, int]()
    for step, report in entries:
        if not run_of(report):
            if step < reached.get(report.phase, step):
                count, reached = count + 1, {}
            reached[report.phase] = step
            report = of_run(report, f"unnamed {count}")
        named.append((step, report))
    return named


def _in_order(written: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Return the last report of each step, run after run, and in words how many were replaced."""
    groups: dict[str, list[Entry]] = {}
    for entry in written:
        run = run_of(entry[1])
        groups[run] = groups.pop(run, [])  # the run that wrote last stands last
        groups[run].append(entry)
    ordered, notes = [], []
    for run, group in groups.items():
        latest = {(report.phase, step): (step, report) for step, report in group}
        ordered += sorted(latest.values(), key=lambda entry: entry[0])
        if len(latest) < len(group):
            notes.append(_replaced(run, group, len(group) - len(latest)))
    return ordered, notes


def _replaced(run: str, group: list[Entry], count: int) -> str:
    name = f" of run {_called(run)}" if run else ""
    reports = f"1 report{name} was" if count == 1 else f"{count} reports{name} were"
    note = f"{reports} written again: the last one of each step is kept"
    end, furthest = group[-1][0], max(step for step, _ in group)
    return note + (f"; what follows step {end} was written before it" if end < furthest else "")


def _called(run: str) -> str:
    return f"'{printable(run)}'" if run else "unnamed"


def _epochs(entries: list[Entry]) -> str:
    first, last = entries[0][0], entries[-1][0]
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"
