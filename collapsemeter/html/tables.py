"""The tables of the report, as rows of text; the template only lays them out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..comparison.result import Comparison
from ..metrics.catalogue import METRICS
from ..metrics.layer import LayerReport
from ..report.criteria import missing
from ..report.report import CollapseReport
from .formulas import FORMULAS
from .verdicts import MARKS
from .words import metric_value, number, target

MOST_CLASSES = 50
MOST_PAIRS = 10
_ABREAST = 8  # layers beside each other in a table
STATUS_MARKS = {**MARKS, "below DNC rank": "◐", "other geometry": "○", "free": "◇",
                "infeasible": "✕", "nothing learned": "–", "unmeasured": "–"}  # fmt: skip


class Cell(NamedTuple):
    """One cell: its text, the number it sorts by (empty: last), and a footnote with its reason."""

    text: str
    order: str = ""
    note: int = 0
    why: str = ""


class Table(NamedTuple):
    """Column titles, rows of cells, the first of which names the row, and a remark below."""

    columns: tuple[str, ...]
    rows: list[list[Cell]]
    remark: str = ""


def worst_classes(layer: LayerReport) -> Table | None:
    r"""Return the classes of largest relative spread :math:`v_c/|\mu_c - m|^2`, 50 at most.

    Parameters
    ----------
    layer : LayerReport

    Returns
    -------
    Table or None
        None where the report holds no values per class.

    Examples
    --------
    >>> from collapsemeter import ClassMoments, measure
    >>> rows = [[0.0, 1], [0, 3], [1, 0], [1, 0.5], [-3, 0], [-3, 1]]
    >>> table = worst_classes(measure(ClassMoments.from_batch(rows, [0, 0, 1, 1, 2, 2], 3)))
    >>> [row[0].text for row in table.rows]
    ['0', '2', '1']
    """
    columns = layer.per_class
    if not {"variance", "mean_norm", "count"} <= columns.keys():
        return None
    missing = np.full(len(columns["count"]), math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = columns["variance"] / columns["mean_norm"] ** 2
    # Classes without rows say nothing; those without a direction come before what is well.
    there = np.flatnonzero(columns["count"] > 0)
    order = there[np.argsort(-np.where(np.isnan(relative), np.inf, relative)[there], kind="stable")]
    nearest = columns.get("nearest_class", np.full(len(missing), -1))
    rows = [
        [
            Cell(str(c), str(c)),
            Cell(str(columns["count"][c]), str(columns["count"][c])),
            *(
                _sortable(float(column[c]))
                for column in (
                    columns["variance"],
                    columns["mean_norm"],
                    relative,
                    columns.get("worst_cosine", missing),
                )
            ),
            Cell(str(nearest[c]), str(nearest[c])) if nearest[c] >= 0 else Cell("–"),
            _share(float(columns.get("ncc_accuracy", missing)[c])),
        ]
        for c in order[:MOST_CLASSES].tolist()
    ]
    left = len(order) - len(rows)
    remark = f"{left} more classes, less spread than these, are left out." if left else ""
    return Table(_CLASS_COLUMNS, rows, remark)


_CLASS_COLUMNS = (
    "class",
    "rows n",
    "variance v_c",
    "distance |μ_c − m|",
    "relative spread v_c/|μ_c − m|²",
    "largest cosine",
    "to class",
    "NCC accuracy",
)


def _sortable(value: float) -> Cell:
    return Cell(number(value), "" if math.isnan(value) else repr(value))


def _share(value: float) -> Cell:
    return Cell(metric_value("ncc_accuracy", value) if math.isfinite(value) else "–",
                "" if math.isnan(value) else repr(value))  # fmt: skip


def worst_pairs(layer: LayerReport) -> Table | None:
    """Return the pairs of class means with the largest cosines, each once, 10 at most.

    A pair is in the table if one of the two is the other's nearest.

    Examples
    --------
    >>> from collapsemeter import ClassMoments, measure
    >>> layer = measure(ClassMoments.from_batch([[0.0, 1], [1, 1], [-3, 0]], [0, 1, 2], 3))
    >>> [row[0].text for row in worst_pairs(layer).rows]
    ['0 and 1', '0 and 2']
    """
    cosine, nearest = (layer.per_class.get(name) for name in ("worst_cosine", "nearest_class"))
    if cosine is None or nearest is None:
        return None
    pairs: dict[tuple[int, int], float] = {}
    for c in np.flatnonzero((nearest >= 0) & np.isfinite(cosine)).tolist():
        pairs[min(c, int(nearest[c])), max(c, int(nearest[c]))] = float(cosine[c])
    if len(cosine) < 3:  # of two classes the one pair says nothing
        return None
    worst = sorted(pairs.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_PAIRS]
    rows = [
        [Cell(f"{a} and {b}"), Cell(f"{value:.3f}", repr(value)),
         Cell(f"{math.degrees(math.acos(min(1.0, max(-1.0, value)))):.1f}°", repr(-value))]
        for (a, b), value in worst
    ]  # fmt: skip
    return Table(("pair", "cosine", "angle"), rows) if rows else None


class Values(NamedTuple):
    """All metrics (rows) of all layers (columns), in tables that fit a printed page, and the footnotes."""

    tables: list[Table]
    notes: list[str]


def all_values(report: CollapseReport) -> Values:
    """Return every metric of every layer, with the reason as a footnote where there is no value.

    Examples
    --------
    >>> report = CollapseReport({"a": LayerReport({"nc1_pinv": 0.5}, {"nc3_cosine": "no_head"})})
    >>> (table,), notes = all_values(report)
    >>> table.columns, [cell.text for cell in table.rows[0]], notes
    (('metric', 'a'), ['nc1_pinv', '0.5'], [])
    """
    notes: dict[str, int] = {}

    def cell(layer: LayerReport, metric: str) -> Cell:
        value = layer.get(metric, math.nan)
        if math.isfinite(value):
            error = layer.standard_errors.get(metric)
            spread = "" if error is None else f" ± {number(error)}"
            return Cell(metric_value(metric, value) + spread)
        why = missing(layer, metric)
        return Cell("–", "", notes.setdefault(why, len(notes) + 1), why)

    measured = [name for name in METRICS if any(name in layer for layer in report.values())]
    names, tables = list(report), []
    for first in range(0, len(names), _ABREAST):
        part = names[first : first + _ABREAST]
        rows = [[Cell(m), *(cell(report[name], m) for name in part)] for m in measured]
        last = first + len(part)
        remark = f"Layers {first + 1} to {last} of {len(names)}" if len(names) > _ABREAST else ""
        tables.append(Table(("metric", *part), rows, remark))
    return Values(tables, list(notes))


def meanings() -> Table:
    """Return what every metric is: meaning, formula, value at collapse, source.

    Examples
    --------
    >>> [cell.text for cell in meanings().rows[1]]
    ['nc1_trace_ratio', 'tr S_W / tr S_B', 'tr S_W / tr S_B', '0', 'Tirer & Bruna 2022']
    """
    rows = [
        [Cell(text) for text in (name, metric.meaning, FORMULAS[name], target(name), metric.source)]
        for name, metric in METRICS.items()
    ]
    return Table(("metric", "meaning", "formula", "at collapse", "source"), rows)


def compared(comparison: Comparison) -> Table:
    """Return the verdict of every layer beside the reference, with the figures it rests on.

    Examples
    --------
    >>> from collapsemeter import compare
    >>> from collapsemeter.dufm import DUFM
    >>> best = DUFM(2, 5, 2, feature_decay=0.01, weight_decay=0.01).optimum()
    >>> [cell.text for cell in compared(compare(best, best)).rows[0]][:4]
    ['1', '1', '◇ free', 'NC1 collapsed: 0 % of the variance is within classes; dnc leaves the frame of this layer free']
    """
    rows = []
    for name, layer in comparison.items():
        nc1 = layer.metrics.get("nc1_trace_ratio")
        figures = (
            math.nan if nc1 is None else nc1.measured,
            layer.gram_distance,
            layer.spectrum_distance,
            layer.ranks.measured,
            layer.ranks.reference,
        )
        words = (name, layer.reference_layer, f"{STATUS_MARKS[layer.status]} {layer.status}",
                 layer.verdict)  # fmt: skip
        rows.append([*map(Cell, words), *map(_sortable, figures)])
    return Table(
        ("layer", "reference layer", "status", "verdict", "NC1 (trace ratio)", "Gram distance",
         "spectrum distance", "effective rank", "of the reference"),
        rows,
    )  # fmt: skip


_LAYER_COLUMNS = ("rows", "ignored_rows", "nonfinite_rows", "classes_present", "width",
                  "feature_dtype", "scatter", "between_rank", "nc4_rows", "nc4_sampled",
                  "unlabelled_rows", "mixed_rows")  # fmt: skip


def layer_origins(report: CollapseReport) -> Table | None:
    """Return how the numbers of every layer came about; None where nothing is known.

    Examples
    --------
    >>> table = layer_origins(CollapseReport({"a": LayerReport({}, provenance={"rows": 7})}))
    >>> table.columns, [cell.text for cell in table.rows[0]]
    (('layer', 'rows'), ['a', '7'])
    """
    used = [k for k in _LAYER_COLUMNS if any(k in layer.provenance for layer in report.values())]
    if not used:
        return None
    rows = [
        [Cell(name), *(Cell(scalar(layer.provenance.get(key))) for key in used)]
        for name, layer in report.items()
    ]
    return Table(("layer", *(title(key) for key in used)), rows)


def title(key: str) -> str:
    """Return a key of a record as words."""
    return str(key).replace("_", " ")


def scalar(value: Any) -> str:
    """Return a plain value as text.

    Examples
    --------
    >>> scalar(None), scalar(True), scalar(0.5), scalar(1234567), scalar("a")
    ('–', 'yes', '0.5', '1,234,567', 'a')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)


def counts_in_words(per_class: Mapping[str, Any]) -> str:
    """Return smallest, median and largest number of rows of a class, and how many have none.

    Examples
    --------
    >>> counts_in_words({"count": np.array([3, 0, 5])})
    'rows per class: 3 to 5, median 4; 1 of 3 classes without rows'
    >>> counts_in_words({})
    ''
    """
    counts = per_class.get("count")
    if counts is None or not (counts > 0).any():
        return ""
    there = counts[counts > 0]
    words = f"rows per class: {there.min():,} to {there.max():,}, median {np.median(there):,g}"
    if there.min() == there.max():
        words = f"{there.min():,} rows per class"
    absent = int((counts == 0).sum())
    return words + (f"; {absent} of {counts.size} classes without rows" if absent else "")
