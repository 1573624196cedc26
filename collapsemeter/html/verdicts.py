"""The verdict strip: NC1 to NC4 of the final layer in words."""

import math
from collections.abc import Iterator
from typing import NamedTuple, get_args

from ..metrics.layer import LayerReport
from ..report.criteria import PROPERTIES, Band, Criteria, missing, pinv_words
from ..report.history import Entries
from ..report.trust_words import trust
from .tables import MARKS, metric_value, number

TITLES = {
    "NC1": "within-class variability",
    "NC2": "distance to a simplex ETF",
    "NC3": "distance of head and means",
    "NC4": "nearest-centre mismatch",
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


def cards(history: Entries, criteria: Criteria) -> list[Card]:
    """Return NC1 to NC4 of the final layer of the last report, with the trend over the history."""
    return [
        Card(
            name,
            TITLES[name],
            PROPERTIES[name],
            judgement.figure or "–",
            MARKS[judgement.band],
            _KINDS.get(judgement.band, "far"),
            judgement.band,
            (judgement.words, *_notes(history, name)),
        )
        for name, judgement in criteria.judge(history[-1][1].final).items()
    ]


def bands(criteria: Criteria) -> list[tuple[str, str]]:
    """Return the marks of the bands and what they stand for."""
    edges = (criteria.collapsed, criteria.nearly, criteria.partly)
    extents = [*(f": at most {criteria.percent(edge)}" for edge in edges), ": above", ""]
    return [
        (MARKS[band], band + extent) for band, extent in zip(get_args(Band), extents, strict=True)
    ]


def _notes(history: Entries, name: str) -> Iterator[str]:
    """Say the value of the property's metric, its trend, how sure it is, and its floor."""
    metric, report = PROPERTIES[name], history[-1][1]
    layer = report.final
    if not missing(layer, metric):
        yield f"{metric} {number(layer[metric])}"
        final = list(report)[-1]
        layers = [(step, entry[final]) for step, entry in history if final in entry]
        yield from _trend(metric, [(step, past.get(metric, math.nan)) for step, past in layers])
        yield from _without_noise(layer, metric)
        if name == "NC4" and metric in layer.intervals:
            low, high = (metric_value(metric, end) for end in layer.intervals[metric])
            on = _count(layer, "nc4_rows", " on {} rows")
            yield f"95 % Wilson interval {low} to {high}: sampled{on}"
        floor = layer.provenance.get("dtype_floor", {}).get(metric)
        if floor is not None:
            dtype = layer.provenance.get("feature_dtype", "the dtype")
            yield f"rounding of {dtype} alone gives {number(floor)}"
    if name == "NC1" and pinv_words(layer):
        yield pinv_words(layer)
    if name == "NC1" and "nc1_pinv" in layer.standard_errors:
        error = number(layer.standard_errors["nc1_pinv"])
        of = _count(layer, "sketch_rows", " of {} rows")
        yield f"standard error ± {error}: estimated from a sketch{of}"


def _without_noise(layer: LayerReport, metric: str) -> Iterator[str]:
    """Say what a metric is without the noise in the class means, and how sure that is."""
    low, high, estimate = trust(layer, metric)
    if not math.isnan(estimate):
        ends = "" if math.isnan(low) else f", 95 % interval {number(low)} to {number(high)}"
        yield f"{number(estimate)} without the noise in class means{ends}"


def _count(layer: LayerReport, key: str, words: str) -> str:
    count = layer.provenance.get(key)
    return words.format(count) if count else ""


def _trend(metric: str, points: list[tuple[int, float]]) -> Iterator[str]:
    """Say how a value moved from the first step to the last, and where it was lowest."""
    known = [(step, value) for step, value in points if math.isfinite(value)]
    if len(known) < 2:
        return
    (first, start), (last, end) = known[0], known[-1]
    yield _movement(metric, first, start, end)
    lowest, least = min(known, key=lambda point: (point[1], -point[0]))
    if lowest not in (first, last):
        yield f"lowest at epoch {lowest}: {metric_value(metric, least)}"


def _movement(metric: str, first: int, start: float, end: float) -> str:
    since, origin = f"since epoch {first}", metric_value(metric, start)
    if start == end:
        return f"= unchanged {since}"
    if end < start:
        how = f"fell {_times(start / end)}" if end > 0 else f"fell to {metric_value(metric, end)}"
        return f"▼ {how} {since}, from {origin}"
    how = f"rose {_times(end / start)}" if start > 0 else "rose"
    return f"▲ {how} {since}, from {origin}"


def _times(factor: float) -> str:
    """Return a factor of at least 1 in words."""
    if factor >= 10:
        return f"{factor:.0f} times" if factor < 1e6 else f"{factor:.2g} times"
    return f"{factor:.1f} times" if factor >= 2 else f"{factor:.3g} times"
