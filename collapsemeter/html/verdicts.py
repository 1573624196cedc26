"""The verdict strip: NC1 to NC4 of the final layer in words."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..catalogue import METRICS
from ..comparing import TOLERANCE
from ..figure import History
from ..report import LayerReport
from .words import metric_value, number, reason, target, times

STRIP = (
    ("NC1", "within-class variability", "nc1_pinv"),
    ("NC2", "distance to a simplex ETF", "nc2_etf_error"),
    ("NC3", "distance of head and means", "nc3_self_duality"),
    ("NC4", "nearest-centre mismatch", "nc4_mismatch"),
)


class Card(NamedTuple):
    """One property: its value, how far it is from collapse (as a mark, a kind and words), and notes."""

    property: str
    title: str
    metric: str
    value: str
    mark: str
    kind: str
    verdict: str
    notes: tuple[str, ...]


def cards(history: History) -> list[Card]:
    """Return NC1 to NC4 of the final layer of the last report, with the trend over the history.

    Parameters
    ----------
    history : sequence of (int, CollapseReport)
        In the order of its steps, not empty.

    Examples
    --------
    >>> from collapsemeter import CollapseReport
    >>> run = [(e, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.5**e})})) for e in (0, 9)]
    >>> cards(run)[0].verdict, cards(run)[0].notes[0]
    ('within 0.05 of collapse', '▼ fell 512 times since epoch 0, from 1')
    """
    return [_card(history, *entry) for entry in STRIP]


def _card(history: History, property: str, title: str, metric: str) -> Card:
    last = history[-1][1]
    name, layer = list(last)[-1], last.final
    value = layer.get(metric, math.nan)
    if not math.isfinite(value):
        words = "no value" if math.isnan(value) else "infinite"
        why = reason(layer, metric)
        return Card(property, title, metric, "–", "–", "none", words, (why,))
    points = [
        (step, report[name].get(metric, math.nan)) for step, report in history if name in report
    ]
    mark, kind, verdict = _distance(layer, metric, value)
    notes = [
        *trend(metric, points),
        *_interval(layer, metric),
        *_error(layer, metric),
        *_floor(layer, metric),
    ]
    return Card(
        property, title, metric, metric_value(metric, value), mark, kind, verdict, tuple(notes)
    )


def _distance(layer: LayerReport, metric: str, value: float) -> tuple[str, str, str]:
    floor = layer.provenance.get("dtype_floor", {}).get(metric)
    if floor is not None and value <= 2 * floor:
        dtype = layer.provenance.get("feature_dtype", "the activations' dtype")
        return "≈", "near", f"at the floor of {dtype}: as collapsed as can be seen"
    away = abs(value - (METRICS[metric].at_collapse or 0.0))
    if away <= TOLERANCE:
        return "●", "near", f"within {TOLERANCE:g} of collapse"
    return "○", "far", f"{number(away)} from collapse"


def _interval(layer: LayerReport, metric: str) -> list[str]:
    if metric not in layer.intervals:
        return []
    low, high = (metric_value(metric, end) for end in layer.intervals[metric])
    rows = layer.provenance.get("nc4_rows")
    on = f" on {rows} rows" if rows else ""
    return [f"95 % Wilson interval {low} to {high}: sampled{on}"]


def _error(layer: LayerReport, metric: str) -> list[str]:
    if metric not in layer.standard_errors:
        return []
    rows = layer.provenance.get("sketch_rows")
    of = f" of {rows} rows" if rows else ""
    return [
        f"standard error ± {number(layer.standard_errors[metric])}: estimated from a sketch{of}"
    ]


def _floor(layer: LayerReport, metric: str) -> list[str]:
    floor = layer.provenance.get("dtype_floor", {}).get(metric)
    if floor is None:
        return []
    dtype = layer.provenance.get("feature_dtype", "the dtype")
    return [f"rounding of {dtype} alone gives {number(floor)}"]


def trend(metric: str, points: list[tuple[int, float]]) -> list[str]:
    """Return in words how a value moved from the first step to the last, and where it was lowest.

    Parameters
    ----------
    metric : str
    points : list of (int, float)
        Step and value; NaN where there is none.

    Examples
    --------
    >>> trend("nc1_pinv", [(0, 2.0), (1, 0.5), (2, 1.0)])
    ['▼ fell 2.0 times since epoch 0, from 2', 'lowest at epoch 1: 0.5']
    >>> trend("nc1_pinv", [(0, 2.0)])
    []
    """
    known = [(step, value) for step, value in points if math.isfinite(value)]
    if len(known) < 2:
        return []
    (first, start), (last, end) = known[0], known[-1]
    words = [_moved(metric, first, start, end)]
    lowest, least = min(known, key=lambda point: (point[1], -point[0]))
    if lowest not in (first, last):
        words.append(f"lowest at epoch {lowest}: {metric_value(metric, least)}")
    return words


def _moved(metric: str, first: int, start: float, end: float) -> str:
    since, origin = f"since epoch {first}", metric_value(metric, start)
    if start == end:
        return f"= unchanged {since}"
    if end < start:
        how = f"fell {times(start / end)}" if end > 0 else f"fell to {metric_value(metric, end)}"
        return f"▼ {how} {since}, from {origin}"
    how = f"rose {times(end / start)}" if start > 0 else "rose"
    return f"▲ {how} {since}, from {origin}"


def target_words(metric: str) -> str:
    """Return the value of a metric at collapse, as the strip says it.

    Examples
    --------
    >>> target_words("nc1_pinv")
    '0 at collapse'
    """
    return f"{target(metric)} at collapse"
