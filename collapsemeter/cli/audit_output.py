"""What ``collapsemeter audit`` and ``audit merge`` print and write."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..comparison.compare import compare
from ..comparison.result import Comparison
from ..html.page import environment, write_html
from ..report.history import History, of_run, read_history, run_of
from ..report.report import CollapseReport
from ..system.files import write_atomically
from ..system.terminal import say
from .fail_if import FailureCondition
from .reference import parse_pairs, problem_of
from .text import epochs_words, history_words, report_line, say_history, say_notes

if TYPE_CHECKING:  # imported by what runs: other commands need nothing of an audit
    pass


class AuditOutput:
    """What to print and write, by the options of ``audit`` and ``audit merge``."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raise ValueError, before an hour of work, if something that is asked for cannot be given."""
        self.options = options
        self.conditions = [FailureCondition.parse(text) for text in options.fail_if]
        self.dufm = None if options.dufm is None else parse_pairs(options.dufm)
        if self.dufm is not None:
            problem_of(self.dufm, 2)
        if options.history is not None:
            read_history(options.history)
        if options.html is not None:
            environment()

    def accept(self, layers: Sequence[str], classes: int) -> None:
        """Raise ValueError if what was asked for does not fit what will be measured."""
        for condition in self.conditions:
            condition.chosen(layers)
        if self.dufm is not None and classes > 1:
            problem_of(self.dufm, classes)

    def give(self, measured: list[tuple[int | None, CollapseReport]]) -> int:
        """Write and print; return 0, or 3 where a condition of failure is met."""
        history = self._with_past(measured)
        report, options = history[-1][1], self.options
        comparison = None if self.dufm is None else self._compared(report, self.dufm)
        if options.report is not None:
            text = report.to_json(indent=1, matrices=True) + "\n"
            write_atomically(options.report, text.encode())
        if options.html is not None:
            write_html(options.html, history, comparison=comparison)
        if options.json or options.quiet:
            say_notes(history)
        if options.json:
            say_history(history)
        elif options.quiet:
            say(report_line(report))
        else:
            self._print(history, comparison)
        failures = [words for condition in self.conditions for words in condition.failures(report)]
        for words in failures:
            say(f"collapsemeter: {words}", error=True)
        return 3 if failures else 0

    def _with_past(self, measured: list[tuple[int | None, CollapseReport]]) -> History:
        """Put the epochs that training recorded before those that were audited."""
        options, last = self.options, measured[-1][1]
        if options.step is not None:
            if len(measured) > 1:
                raise ValueError(
                    f"--step {options.step}: there are {len(measured)} steps; use --epoch"
                )
            measured = [(options.step, last)]
        past = History([])
        if options.history is not None:
            past = read_history(options.history).of_phase(last.phase)
            if not past:
                raise ValueError(
                    f"--history {options.history} holds no report of phase {last.phase!r}, which was audited: "
                    "pass --phase, or another history"
                )
        following = past[-1][0] + 1 if past else 0  # of files that do not say their step
        # What is audited goes on with the run that trained last, and stands for what that said of its epoch.
        run = run_of(past[-1][1]) if past else ""
        audited = [
            (following if step is None else step, of_run(report, run) if run else report)
            for step, report in measured
        ]
        steps = {step for step, _ in audited}
        before = [e for e in past if e[0] not in steps or run_of(e[1]) != run]
        return History([*before, *audited], past.notes)

    @staticmethod
    def _compared(report: CollapseReport, pairs: dict[str, str]) -> Comparison:
        """Compare with the optimum of a problem whose classes are those that were measured."""
        counts = sorted(int(count) for count in report.final.per_class["count"] if count)
        if not counts:
            raise ValueError("--dufm: no class was measured, so there is nothing to compare")
        problem = problem_of(pairs, len(counts), counts[len(counts) // 2])
        return compare(report, problem.optimum())

    def _print(self, history: History, comparison: Comparison | None) -> None:
        if len(history.last) > 1:
            say(f"{epochs_words(history.last)}\n")
        say(history_words(history, html=self.options.html))
        if comparison is not None:
            say(f"\n{comparison.table()}")
        if self.options.report is not None:
            say(f"JSON: {self.options.report}")
