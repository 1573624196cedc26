"""Reports of one or several runs in order, and what must be said of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from ..system.escaping import printable
from .file import line_fields, read_json
from .report import CollapseReport, built
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
    """

    notes: tuple[str, ...]
    """What must be said besides: lines that do not read, runs in which steps were written twice."""

    def __new__(cls, entries: Iterable[Entry], notes: Iterable[str] = ()) -> Self:
        written = [(int(step), report) for step, report in entries]
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
        """Return the first step of the last run at zero training error, as recorded or given; the step is None where none is known.

        Reports have the error where `CollapseReport.with_training_error` recorded it. Nothing is
        guessed: NC4 and nearest-centre accuracy are not the network's error.
        """
        return terminal_phase(self.last, errors)

    def trends(
        self,
        since: int | None = None,
        metrics: Sequence[str] = FALLING,
        layers: Sequence[str] | None = None,
    ) -> dict[str, dict[str, Trend]]:
        """Return the log-slope of every metric of every layer over the last run, from a step on: by default from the terminal phase on, where that is known."""
        since = self.terminal_phase().step if since is None else since
        return trends(self.last, since, metrics, layers)

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
    """Return the reports in the JSON lines that `JsonlSink` wrote, and count lines that do not read; ValueError where none does."""
    source = os.fspath(path)
    entries, wrong = [], []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), start=1):
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
