"""What is known of the noise in a metric: beside its value, why it has no estimate, what flags of noise mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..stats.undefined import FLAGS, REASONS
from ..system.escaping import printable

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

PARTS = ("low", "high", "estimate")
"""What stands beside a metric's value: the ends of its 95 % interval, and its estimate."""

LASTING = ("divides_by_noisy_directions", "no_defensible_estimate", "share_of_rows")
"""Why a metric never has an estimate or interval, whatever the rows: a history does not repeat it."""

_OF_ROWS = ("between_scatter_not_above_noise", "too_few_rows")  # reasons that more rows would end
_CAUTIONS = {  # flags, and how the metrics begin that they concern
    "between_scatter_not_above_noise": ("nc", "separation"),
    "resubstitution": ("nc4_", "ncc_accuracy"),
    "etf_is_generic": ("nc2_etf_error",),
}
_LISTED = 3


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


def no_part(layer: LayerReport, metric: str, part: str) -> str:
    """Return in words why a metric has no estimate or interval."""
    codes = layer.no_estimate if part == "estimate" else layer.no_interval
    code = codes.get(metric, layer.reason(metric))
    if code is None:
        return "it was not recorded" if metric in layer else "it was not measured"
    return _sentence(layer, code)


def cautions(layers: Mapping[str, LayerReport], metrics: Iterable[str]) -> list[str]:
    """Return a sentence for every flag of noise that concerns one of some metrics, with the layers that have it."""
    names = tuple(metrics)
    sentences = []
    for flag, beginnings in _CAUTIONS.items():
        flagged = [name for name, layer in layers.items() if flag in layer.flags]
        if flagged and any(name.startswith(beginnings) for name in names):
            sentences.append(f"{_listed(flagged)}: {_sentence(layers[flagged[-1]], flag)}")
    return sentences


def _sentence(layer: LayerReport, code: str) -> str:
    words = (REASONS | FLAGS).get(code, code)
    return with_rows(layer, words) if code in _OF_ROWS else words


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def with_rows(layer: LayerReport, words: str) -> str:
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
