"""The verdict strip: NC1 to NC4 of the final layer in words."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..metrics.layer import LayerReport
from ..report.criteria import PROPERTIES, Criteria, Judgement, missing, pinv_words
from ..report.history import Entries
from .words import metric_value, number, times

TITLES = {
    "NC1": "within-class variability",
    "NC2": "distance to a simplex ETF",
    "NC3": "distance of head and means",
    "NC4": "nearest-centre mismatch",
}
MARKS: dict[str, str] = {
    "collapsed": "●",
    "nearly collapsed": "◕",
    "partly collapsed": "◑",
    "not collapsed": "○",
    "not judged": "–",
}
_KINDS = {"collapsed": "near", "not judged": "none"}  # the others are far


class Card(NamedTuple):
    """One property: its figure, the band of it (as a mark, a kind and words), and notes."""

    property: str
    title: str
    metric: str
    value: str
    mark: str
    kind: str
    verdict: str
    notes: tuple[str, ...]


def cards(history: Entries, criteria: Criteria | None = None) -> list[Card]:
    """Return NC1 to NC4 of the final layer of the last report, with the trend over the history.

    Parameters
    ----------
    history : sequence of (int, CollapseReport)
        In the order of its steps, not empty.
    criteria : Criteria, optional
        What counts as collapsed.

    Examples
    --------
    >>> from collapsemeter import CollapseReport
    >>> run = [(e, CollapseReport({"fc": LayerReport({"nc1_trace_ratio": 0.5**e})})) for e in (0, 9)]
    >>> card = cards(run)[0]
    >>> card.value, card.verdict, card.notes[0]
    ('0.19 %', 'collapsed', '0.19 % of the variance is within classes')
    >>> card.notes[2]
    '▼ fell 512 times since epoch 0, from 1'
    """
    judged = Criteria.chosen(criteria).judge(history[-1][1].final)
    return [_card(history, judgement) for judgement in judged.values()]


def _card(history: Entries, judgement: Judgement) -> Card:
    last = history[-1][1]
    name, layer, metric = list(last)[-1], last.final, PROPERTIES[judgement.property]
    points = [
        (step, report[name].get(metric, math.nan)) for step, report in history if name in report
    ]
    notes = [judgement.words]
    if not missing(layer, metric):
        notes += [
            f"{metric} {number(layer[metric])}",
            *trend(metric, points),
            *_interval(layer, metric),
            *_floor(layer, metric),
        ]
    if judgement.property == "NC1":
        notes += [*filter(None, [pinv_words(layer)]), *_error(layer, "nc1_pinv")]
    return Card(
        judgement.property,
        TITLES[judgement.property],
        metric,
        judgement.figure or "–",
        MARKS[judgement.band],
        _KINDS.get(judgement.band, "far"),
        judgement.band,
        tuple(notes),
    )


def bands(criteria: Criteria) -> list[tuple[str, str]]:
    """Return the marks of the bands and what they stand for.

    Examples
    --------
    >>> bands(Criteria())[:2]
    [('●', 'collapsed: at most 1 %'), ('◕', 'nearly collapsed: at most 10 %')]
    """
    edges = (criteria.collapsed, criteria.nearly, criteria.partly)
    said = [f": at most {criteria.percent(edge)}" for edge in edges]
    return [
        (mark, band + extent)
        for (band, mark), extent in zip(MARKS.items(), [*said, ": above", ""], strict=True)
    ]


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
