"""Reports of one or several runs in order, and what must be said of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Self

from ..system.escaping import printable
from .report import CollapseReport

Entry = tuple[int, CollapseReport]
Entries = Sequence[Entry]

_LISTED = 5


class History(tuple[Entry, ...]):
    """Steps and reports, run after run, each run in the order of its steps.

    A run is what one sink wrote, under a ``run`` of its own or one that was given to resume it; reports
    carry it in ``provenance["run"]``. Steps of two runs are never points of one line. The run that wrote
    last stands last, and of two reports of one step in one run the later one is kept.

    Parameters
    ----------
    entries : iterable of (int, CollapseReport)
        In the order in which they were written. Reports without a run belong to one; where steps occur
        twice among them, a step that goes back starts another.
    notes : iterable of str
        What must be said besides, such as lines of a file that do not read.

    Attributes
    ----------
    notes : tuple of str
        Those, and a sentence on every run in which steps were written twice.

    Examples
    --------
    >>> def at(step, run):
    ...     return step, CollapseReport({}, provenance={"run": run})
    >>> history = History([at(0, "a"), at(1, "a"), at(0, "b"), at(1, "a")])
    >>> [(run, len(entries)) for run, entries in history.runs.items()]
    [('b', 1), ('a', 2)]
    >>> history.notes
    ("1 report of run 'a' was written again: the last one of each step is kept",)
    """

    notes: tuple[str, ...]

    def __new__(cls, entries: Iterable[Entry], notes: Iterable[str] = ()) -> Self:
        written = [(int(step), report) for step, report in entries]
        nameless = [(step, report.phase) for step, report in written if not run_of(report)]
        if len(set(nameless)) < len(nameless):
            written = name_runs(written)
        kept, said = _settled(written)
        self = super().__new__(cls, kept)
        earlier = entries.notes if isinstance(entries, History) else ()
        self.notes = (*earlier, *notes, *said)
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

    def earlier_runs(self) -> str:
        """Return in words which runs stand before the last one; empty where there is none.

        Examples
        --------
        >>> runs = [(2, CollapseReport({}, provenance={"run": run})) for run in "ab"]
        >>> History(runs).earlier_runs()
        "1 earlier run, which no line joins: 'a' (epoch 2)"
        """
        said = [f"{_called(run)} ({_epochs(of)})" for run, of in list(self.runs.items())[:-1]]
        if not said:
            return ""
        more = f" and {len(said) - _LISTED} more" if len(said) > _LISTED else ""
        count = "1 earlier run" if len(said) == 1 else f"{len(said)} earlier runs"
        return f"{count}, which no line joins: {', '.join(said[-_LISTED:])}{more}"


def run_of(report: CollapseReport) -> str:
    """Return the run a report belongs to, empty where it names none.

    Examples
    --------
    >>> run_of(CollapseReport({}, provenance={"run": "night-3"})), run_of(CollapseReport({}))
    ('night-3', '')
    """
    run = report.provenance.get("run")
    return run if isinstance(run, str) else ""


def of_run(report: CollapseReport, run: str) -> CollapseReport:
    """Return the report as one of a run.

    Examples
    --------
    >>> run_of(of_run(CollapseReport({}), "night-3"))
    'night-3'
    """
    return replace(report, provenance={**report.provenance, "run": run})


def new_run() -> str:
    """Return a name for a run that no other has: the time, and four digits by chance.

    Examples
    --------
    >>> import re
    >>> bool(re.fullmatch("[0-9]{8}-[0-9]{6}-[0-9a-f]{4}", new_run()))
    True
    """
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def name_runs(entries: Iterable[Entry]) -> list[Entry]:
    """Name the runs of reports that have none: a step that goes back, in its phase, starts another.

    Examples
    --------
    >>> old = [(step, CollapseReport({})) for step in (0, 1, 0)]
    >>> [run_of(report) for _, report in name_runs(old)]
    ['unnamed 1', 'unnamed 1', 'unnamed 2']
    """
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


def _settled(written: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Keep the last report of each step of a run, put runs and steps in order, and say what was left out."""
    groups: dict[str, list[Entry]] = {}
    for step, report in written:
        group = groups.pop(run_of(report), [])
        group.append((step, report))
        groups[run_of(report)] = group  # at the end: the run that wrote last stands last
    kept, said = [], []
    for run, group in groups.items():
        latest = {(report.phase, step): (step, report) for step, report in group}
        kept += sorted(latest.values(), key=lambda entry: entry[0])
        if len(latest) < len(group):
            said.append(_replaced(run, group, len(group) - len(latest)))
    return kept, said


def _replaced(run: str, group: list[Entry], count: int) -> str:
    of = f" of run {_called(run)}" if run else ""
    were = "report" + of + " was" if count == 1 else "reports" + of + " were"
    note = f"{count} {were} written again: the last one of each step is kept"
    end, furthest = group[-1][0], max(step for step, _ in group)
    if end < furthest:
        note += f"; what follows step {end} was written before it"
    return note


def _called(run: str) -> str:
    return f"'{printable(run)}'" if run else "unnamed"


def _epochs(entries: list[Entry]) -> str:
    first, last = entries[0][0], entries[-1][0]
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"
