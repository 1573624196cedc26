"""``collapsemeter show`` and ``collapsemeter compare``: their arguments."""

from __future__ import annotations

import argparse
from typing import Any

from ..metrics.catalogue import METRICS
from ..report.report import TABLE
from . import show

_SHOW = """\
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
examples:
  a network beside another one, layer by layer from the end
    collapsemeter compare mine.json theirs.json
  two metrics beside those of the reference
    collapsemeter compare mine.json theirs.json --metrics nc1_pinv nc2_etf_error
  for a program
    collapsemeter compare mine.json theirs.json --json
"""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "show",
        help="print a saved report, or write it as one HTML page",
        description="Print a report that `collapsemeter audit --json` or report.to_json() wrote, or\n"
        "the last one of a history in JSON lines (.jsonl).",
        epilog=_SHOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=lambda options: show.show(options.report, _wish(options)))
    command.add_argument("report", help="file, .json or .jsonl")
    command.reads("report")
    _add_output(command)


def add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="put a saved report beside another one",
        description="Compare the geometry of two reports, over all orders of the classes. Gram\n"
        "matrices are compared where the reports hold them: `collapsemeter audit --json`\n"
        "and report.to_json(matrices=True) write them.",
        epilog=_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(
        run=lambda options: show.compare_files(options.report, options.reference, _wish(options))
    )
    command.add_argument("report", help="what was measured, .json or .jsonl")
    command.add_argument("reference", help="what it is compared with")
    command.reads("report", "reference")
    _add_output(command)


def _add_output(command: Any) -> None:
    add = command.add_argument
    names = f"metrics of the table, of {', '.join(METRICS)}"
    add("--metrics", nargs="+", default=TABLE, metavar="NAME", help=names)
    add("--phase", help="which phase of a history to take, such as frozen-train")
    add("--html", metavar="FILE", help="write the HTML report (extra: report)")
    command.writes(html="page")
    add = command.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--quiet", action="store_true", help="print one line")


def _wish(options: argparse.Namespace) -> show.Wish:
    return show.Wish(
        json=options.json,
        quiet=options.quiet,
        html=options.html,
        metrics=tuple(options.metrics),
        phase=options.phase,
    )
