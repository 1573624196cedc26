"""The tables over classes: those of largest spread, pairs of near means, rows per class."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..metrics.catalogue import METRICS
from ..metrics.layer import LayerReport
from ..stats.linalg import Floats
from .tables import Cell, Table, metric_value, number

MOST_CLASSES = 50
MOST_PAIRS = 10


def worst_classes(layer: LayerReport) -> Table | None:
    r"""Return the classes of largest relative spread :math:`v_c/|\mu_c - m|^2`; None where it is not known."""
    columns = layer.per_class
    if not {"variance", "mean_norm", "count"} <= columns.keys():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = columns["variance"] / columns["mean_norm"] ** 2
    # Classes without rows say nothing; those without a direction come before what is well.
    present = np.flatnonzero(columns["count"] > 0)
    severity = np.where(np.isnan(spread), np.inf, spread)[present]
    if not present.size:
        return None
    order = present[np.argsort(-severity, kind="stable")]
    rows = [_class_row(columns, spread, c) for c in order[:MOST_CLASSES].tolist()]
    left = len(order) - len(rows)
    remark = f"{left} more classes, less spread than these, are left out." if left else ""
    return Table(tuple(rows[0]), [list(row.values()) for row in rows], remark)


def _class_row(columns: Mapping[str, Any], spread: Floats, c: int) -> dict[str, Cell]:
    """Return the cells of a class by the titles of their columns."""
    unknown = np.full(len(spread), math.nan)
    nearest = columns.get("nearest_class", np.full(len(spread), -1))[c].item()
    return {
        "class": _sortable(c),
        "rows n": _sortable(columns["count"][c].item()),
        "variance v_c": _with_interval(columns, "variance", c),
        "distance |μ_c − m|": _with_interval(columns, "mean_norm", c),
        "relative spread v_c/|μ_c − m|²": _sortable(spread[c].item()),
        "largest cosine": _sortable(columns.get("worst_cosine", unknown)[c].item()),
        "to class": _sortable(nearest if nearest >= 0 else math.nan),
        "NCC accuracy": _with_interval(columns, "ncc_accuracy", c),
    }


def _with_interval(columns: Mapping[str, Any], name: str, c: int) -> Cell:
    """Return a value of a class, and the ends of its 95 % interval where it has one."""
    names = (name, f"{name}_low", f"{name}_high")
    values = [columns[each][c].item() if each in columns else math.nan for each in names]
    shown = [metric_value(name, value) if name in METRICS else number(value) for value in values]
    known = not any(map(math.isnan, values))
    text = f"{shown[0]} ({shown[1]} to {shown[2]})" if known else shown[0]
    return _sortable(values[0])._replace(text=text)


def worst_pairs(layer: LayerReport) -> Table | None:
    """Return the pairs of class means with the largest cosines, if one is the other's nearest; each once."""
    cosine, nearest = (layer.per_class.get(name) for name in ("worst_cosine", "nearest_class"))
    if cosine is None or nearest is None or len(cosine) < 3:  # of two classes one pair says nothing
        return None
    pairs: dict[tuple[int, int], float] = {}
    for c in np.flatnonzero((nearest >= 0) & np.isfinite(cosine)).tolist():
        pairs[min(c, int(nearest[c])), max(c, int(nearest[c]))] = float(cosine[c])
    worst = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_PAIRS]
    rows = []
    for (a, b), value in worst:
        angle = math.degrees(math.acos(min(1.0, max(-1.0, value))))
        rows.append([Cell(f"{a} and {b}"), Cell(f"{value:.3f}"), Cell(f"{angle:.1f}°")])
    return Table(("pair", "cosine", "angle"), rows) if rows else None


def counts_in_words(per_class: Mapping[str, Any]) -> str:
    """Return smallest, median and largest number of rows of a class, and how many have none."""
    counts = per_class.get("count", np.zeros(0))
    present = counts[counts > 0]
    if not present.size:
        return ""
    low, high = present.min(), present.max()
    words = f"rows per class: {low:,} to {high:,}, median {np.median(present):,g}"
    if low == high:
        words = f"{low:,} rows per class"
    absent = counts.size - present.size
    return words + (f"; {absent} of {counts.size} classes without rows" if absent else "")


def _sortable(value: float) -> Cell:
    return Cell(number(value), "" if math.isnan(value) else repr(value))
