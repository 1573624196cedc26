"""Sentences about classes that differ in size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport


def imbalance_words(layer: LayerReport) -> str:
    """Return which reference applies in place of a simplex ETF, and which classes are closest; empty where classes are alike."""
    if "unequal_classes" not in layer.flags:
        return ""
    counts = layer.per_class.get("count", np.zeros(0))
    present = counts[counts > 0]
    sizes = f" ({present.min()} to {present.max()} rows)" if present.size else ""
    away = layer.provenance.get("seli_to_etf")
    distance = f", {away:.2g} from it" if isinstance(away, float) else ""
    words = f"classes differ in size{sizes}: trained so with cross-entropy, the optimum is no simplex ETF but SELI{distance}"
    error = layer.get("nc2_seli_error", math.nan)
    if math.isfinite(error):
        words += f"; class means are {error:.2g} from SELI"
    for suffix, what in (("", "class means"), ("_head", "rows of the head")):
        pair = closest_pair(layer, suffix)
        if pair is not None:
            words += f"; closest {what} {pair[0]} and {pair[1]}, cosine {pair[2]:.2f}"
    return words


def closest_pair(layer: LayerReport, suffix: str = "") -> tuple[int, int, float] | None:
    """Return the two classes whose means, or rows of the head, have the largest cosine, and that; None where it is not known."""
    cosines, nearest = (
        layer.per_class.get(f"{name}{suffix}") for name in ("worst_cosine", "nearest_class")
    )
    if cosines is None or nearest is None or not np.isfinite(cosines).any():
        return None
    first = int(np.nanargmax(cosines))
    second = int(nearest[first])
    return min(first, second), max(first, second), float(cosines[first])
