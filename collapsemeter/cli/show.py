"""``collapsemeter show`` and ``collapsemeter compare``: reports from files as text, JSON and HTML."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..comparison.compare import compare
from ..html.page import write_html
from ..metrics.catalogue import METRICS
from ..report.history import History, read_history
from ..report.report import CollapseReport
from ..report.report_table import TABLE
from ..system.suggest import did_you_mean
from ..system.terminal import say, say_json
from .text import history_words, report_line, say_notes, terminal_width

_SHOW = """\
Print a report that `collapsemeter audit --json` or report.to_json() wrote, or
the last one of a history in JSON lines (.jsonl).

examples:
  a report in 80 columns, or as wide as the terminal
    collapsemeter show report.json
  the page with the figures
    collapsemeter show report.json --html report.html
  the history that a training run wrote, with its trends
    collapsemeter show runs/reports.jsonl --html report.html
  one line, for a log
    collapsemeter show report.json --quiet
"""

_COMPARE = """\
Compare the geometry of two reports, over all orders of the classes. Gram
matrices are compared where the reports hold them: `collapsemeter audit --json`
and report.to_json(matrices=True) write them.

examples:
  a network beside another one, layer by layer from the end
    collapsemeter compare mine.json theirs.json
  two metrics beside those of the reference
    collapsemeter compare mine.json theirs.json --metrics nc1_pinv nc2_etf_error
  for a program
    collapsemeter compare mine.json theirs.json --json
"""


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    arguments = {"report": "file, .json or .jsonl"}
    words = "print a saved report, or write it as one HTML page"
    _add(commands, "show", words, _SHOW, _show, arguments)
    arguments = {
        "report": "what was measured, .json or .jsonl",
        "reference": "what it is compared with",
    }
    words = "put a saved report beside another one"
    _add(commands, "compare", words, _COMPARE, _compare, arguments)


def _add(
    commands: Any, name: str, words: str, text: str, run: Any, arguments: dict[str, str]
) -> None:
    description, examples = text.split("\n\n", 1)
    command = commands.add_parser(
        name,
        help=words,
        description=description,
        epilog=examples,
    )
    command.set_defaults(run=run)
    for argument, meaning in arguments.items():
        command.add_argument(argument, help=meaning)
    command.reads(*arguments)
    add = command.add_argument
    names = f"metrics of the table, of {', '.join(METRICS)}"
    add("--metrics", nargs="+", default=TABLE, metavar="NAME", help=names)
    add("--phase", help="which phase of a history to take, such as frozen-train")
    add("--html", metavar="FILE", help="write the HTML report (extra: report)")
    command.writes(html="page")
    add = command.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--quiet", action="store_true", help="print one line")


def _show(options: argparse.Namespace) -> None:
    _check_metrics(options.metrics)
    history = _history(options.report, options.phase)
    report = history[-1][1]
    if options.html is not None:
        write_html(options.html, history)
    if options.json:
        say_json(report.to_dict() | history.over_time(), indent=2)
    elif options.quiet:
        say(report_line(report))
    else:
        say(history_words(history, options.metrics, options.html))
        return
    say_notes(history)


def _check_metrics(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(
            f"no metric is named {unknown[0]!r}; there are {', '.join(METRICS)}"
            + did_you_mean(unknown[0], METRICS)
        )


def _compare(options: argparse.Namespace) -> None:
    _check_metrics(options.metrics)
    history = _history(options.report, options.phase)
    reference = _history(options.reference, options.phase)[-1][1]
    comparison = compare(history[-1][1], reference)
    if options.html is not None:
        write_html(options.html, history, comparison=comparison)
    if options.json:
        say_json(comparison.to_dict(), indent=2)
    elif options.quiet:
        say(comparison.summary())
    else:  # the overview, unless metrics are asked for
        metrics = [] if options.metrics is TABLE else options.metrics
        say(comparison.table(metrics, terminal_width()))
    say_notes(history)


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
