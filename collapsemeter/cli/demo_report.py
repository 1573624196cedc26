"""The end of the demo: the activations that were written are audited, and the report is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..report.report import CollapseReport
from ..system.files import write_atomically

NC4 = ("nc4_agreement", "nc4_mismatch", "ncc_accuracy")
TOLERANCE = 1e-4  # what one network may differ by between frameworks that sum in float32


def audited_report(folder: Path) -> CollapseReport:
    """Measure the activations that the run wrote below its folder."""
    from ..audit import audit

    return audit(str(folder / "activations"))


def write_report(folder: Path, history: Sequence[tuple[int, CollapseReport]], title: str) -> Path:
    """Write the last report as JSON and the history as a page; return the page."""
    from ..html import write_html

    final = history[-1][1].to_json(matrices=True)
    write_atomically(folder / "report.json", final.encode())
    write_html(folder / "report.html", history, title=title)
    return folder / "report.html"


def agreement(observed: CollapseReport, audited: CollapseReport) -> str:
    """Say how far the final layer's metrics from the files are from those of the network itself.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> seen = CollapseReport({"fc": LayerReport({"nc1_pinv": 2.0, "nc4_mismatch": 0.5})})
    >>> again = CollapseReport({"fc": LayerReport({"nc1_pinv": 2.002, "nc4_mismatch": 0.5})})
    >>> agreement(seen, again)
    "The audit of the files does not agree with what was observed: metrics of 'fc' within 1.0e-03, NC4 equal"
    """
    one, other = observed.final, audited.final
    worst = max(_difference(value, other[name]) for name, value in one.items() if name not in NC4)
    equal = all(_difference(one[name], other[name]) == 0 for name in NC4 if name in one)
    agrees = "agrees" if equal and worst <= TOLERANCE else "does not agree"
    return (
        f"The audit of the files {agrees} with what was observed: metrics of {list(audited)[-1]!r} within "
        f"{worst:.1e}, NC4 {'equal' if equal else 'not equal'}"
    )


def _difference(a: float, b: float) -> float:
    """Return the relative difference; none between two values that do not exist."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if math.isnan(a) or math.isnan(b):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))
