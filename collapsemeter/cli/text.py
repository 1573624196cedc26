"""Reports and histories for the terminal: as text, one line, or JSON."""

import re
import shutil
import textwrap
from collections.abc import Sequence

from ..report.history import Entries, History, run_of
from ..report.origin import origin
from ..report.report import CollapseReport
from ..report.report_table import TABLE
from ..report.trends import FALLING, began, trend_words
from ..system.escaping import printable
from ..system.terminal import say, say_json

_EPOCHS = 20  # lines of the table over epochs


def report_line(report: CollapseReport) -> str:
    """Return what a report is of and its summary, in one line."""
    return "; ".join([*origin(report)[:1], report.summary()])


def history_words(history: Entries, metrics: Sequence[str] = TABLE, html: str | None = None) -> str:
    """Return the last report of a history: its rows, a summary, a table, and what the history lacks."""
    width = terminal_width()
    history = History(history)
    step, report = history[-1]
    paragraphs = [*origin(report), report.summary()]
    if len(history) > 1:
        paragraphs.append(f"epoch {step}, the last of {len(history.last)} reports")
    lines = _wrapped([*paragraphs, history.earlier_runs()], width)
    lines += ["", report.table(metrics, width)]
    for part in (report.depth_profile().sentences(), time_words(history, metrics)):
        lines += ["", *_wrapped(part, width)] if part else []
    lines += _wrapped([f"! {printable(note)}" for note in history.notes], width)
    overhead = report.provenance.get("overhead")
    if isinstance(overhead, float):
        lines += ["", f"measuring took {overhead:.1%} of the training's time"]
    if html is not None:
        lines += ["", f"HTML report: {html}"]
    return "\n".join(lines)


def time_words(history: History, metrics: Sequence[str]) -> list[str]:
    """Return when the terminal phase began, and the log-slopes of the final layer; nothing of one report."""
    if len(history.last) < 2 or not len(history[-1][1]):
        return []
    onset, final = history.terminal_phase(), list(history[-1][1])[-1]
    falling = [metric for metric in metrics if metric in FALLING]
    slopes = history.trends(onset.step, falling, [final]).get(final, {})
    words = [f"log-slope per epoch at {printable(final)}, over {began(onset)}:"]
    if not slopes:
        return []
    if all(trend.why for trend in slopes.values()):
        return [f"{words[0]} {'; '.join(sorted({trend.why for trend in slopes.values()}))}"]
    return [*words, *(trend_words(metric, trend) for metric, trend in slopes.items())]


def _wrapped(paragraphs: Sequence[str], width: int) -> list[str]:
    lines = (textwrap.wrap(text, width, subsequent_indent="  ") for text in paragraphs)
    return [line for part in lines for line in part]


def say_notes(history: Entries) -> None:
    """Say on standard error what a history lacks, where standard output is for something else."""
    for note in History(history).notes:
        say(f"collapsemeter: {printable(note)}", error=True)


def terminal_width() -> int:
    """Return the columns of the terminal; 80 where there is none, and never too few for a table."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def epochs_words(history: Entries) -> str:
    """Return a table of the final layer, an epoch a line."""
    shown = {str(step): report.final for step, report in history[-_EPOCHS:] if len(report)}
    about = f"The final layer over {len(shown)} epochs"
    return f"{about}\n\n{re.sub('(?m)^layer', 'epoch', CollapseReport(shown).table())}"


def say_history(history: History) -> None:
    """Print one report as JSON, or several as JSON lines, as a history is."""
    if len(history) == 1:
        say_json(history[0][1].to_dict(matrices=True), indent=1)
        return
    for step, report in history:
        run = {"run": run_of(report)} if run_of(report) else {}
        say_json({**run, "step": step, **report.to_dict(matrices=True)})
