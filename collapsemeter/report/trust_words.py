"""Words for the noise in a metric: beside its value, and how many rows a class it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

PARTS = ("low", "high", "estimate")
"""Companions of a metric's value: the ends of its 95 % interval, and its estimate."""

LASTING = ("divides_by_noisy_directions", "no_defensible_estimate", "share_of_rows")
"""Why a metric never has an estimate or interval, whatever the rows: a history does not repeat it."""


class Trust(NamedTuple):
    """The estimate of a metric and the ends of its 95 % interval, NaN where there is none."""

    low: float
    high: float
    estimate: float


def trust(layer: LayerReport, metric: str) -> Trust:
    """Return what is known of the noise in a metric."""
    low, high = layer.intervals.get(metric, (math.nan, math.nan))
    return Trust(low, high, layer.estimates.get(metric, math.nan))


def beside(layer: LayerReport, metric: str, shown: Callable[[float], str] = "{:.3g}".format) -> str:
    """Return ``(est. 1.16, 0.98 to 1.36)`` after a space, or as much of it as is known."""
    low, high, estimate = trust(layer, metric)
    parts = [] if math.isnan(estimate) else [f"est. {shown(estimate)}"]
    if not (math.isnan(low) or math.isnan(high)):
        parts.append(f"{shown(low)} to {shown(high)}")
    return f" ({', '.join(parts)})" if parts else ""


def words_with_rows(layer: LayerReport, words: str) -> str:
    """Return the beginning of a sentence with the rows of a class; all of it where they are not known."""
    rows = _rows_a_class(layer)
    return f"{words.partition(':')[0]}: {rows}" if rows else words


def _rows_a_class(layer: LayerReport) -> str:
    counts = layer.per_class.get("count", np.zeros(0))
    present = counts[counts > 0]
    if present.size:
        low, high = int(present.min()), int(present.max())
        rows = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        return f"{rows} {'row' if high == 1 else 'rows'} a class"
    total, classes = (layer.provenance.get(key) for key in ("rows", "classes_present"))
    if not (isinstance(total, int) and isinstance(classes, int) and total >= classes > 0):
        return ""
    mean = total / classes
    return "1 row a class" if mean == 1 else f"{mean:,.3g} rows a class"
