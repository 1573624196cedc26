"""Curves of what is derived from reports: depth, and how fast the final layer's metrics fall so far."""

import math

from ..metrics.layer import LayerReport
from ..report.drawing import evenly
from ..report.report import CollapseReport
from ..report.report_table import TABLE
from ..report.tags import of_phase
from ..report.training_error import RECORDED_ERROR
from ..report.trends import terminal_phase, trends

_MOST = 256  # reports that a slope is taken from: more lie evenly thinned
_FINAL = "final"

Entry = tuple[int, CollapseReport]


class Derived:
    """Turns the reports of one sink into ``{tag: value}``; tags of a second phase have its name in them."""

    def __init__(self) -> None:
        self._phases: dict[str, dict[int, CollapseReport]] = {}

    def of(self, step: int, report: CollapseReport) -> dict[str, float]:
        """Return ``depth/collapse_depth``, ``log_slope/nc1_pinv`` and its ``.low`` and ``.high``, and so on, where they are known."""
        past = self._phases.setdefault(report.phase, {})
        past[step] = _final(report)
        values = {
            f"depth/{name}": value for name, value in report.depth_profile().scalars().items()
        }
        values |= _slopes(sorted(past.items()))
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        first = next(iter(self._phases)) == report.phase
        return finite if first else of_phase(finite, report.phase)


def _final(report: CollapseReport) -> CollapseReport:
    """Return what slopes need of a report."""
    final = report.final if report.layers else {}
    values = {metric: final[metric] for metric in TABLE if metric in final}
    about = {key: value for key, value in report.provenance.items() if key == RECORDED_ERROR}
    return CollapseReport({_FINAL: LayerReport(values)}, provenance=about)


def _slopes(entries: list[Entry]) -> dict[str, float]:
    since = terminal_phase(entries).step
    points = [entry for entry in entries if since is None or entry[0] >= since]
    thinned = [points[i] for i in evenly(len(points), _MOST)]
    values = {} if since is None else {"log_slope/since": float(since)}
    for metric, trend in trends(thinned, metrics=TABLE).get(_FINAL, {}).items():
        tag = f"log_slope/{metric}"
        values |= {tag: trend.slope, f"{tag}.low": trend.low, f"{tag}.high": trend.high}
    return values
