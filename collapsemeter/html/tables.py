"""Numbers and codes as words, and the tables of the report as rows of text."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..comparison.result import Comparison
from ..metrics.catalogue import METRICS, Metric
from ..metrics.layer import LayerReport
from ..report.criteria import missing
from ..report.history import History
from ..report.report import CollapseReport
from ..report.trust_words import beside
from ..stats.linalg import Floats

MOST_CLASSES = 50
MOST_PAIRS = 10
_LAYERS_ABREAST = 8  # layers beside each other in a table
MARKS: dict[str, str] = {
    "collapsed": "●",
    "nearly collapsed": "◕",
    "partly collapsed": "◑",
    "not collapsed": "○",
    "not judged": "–",
    "below DNC rank": "◐",
    "other geometry": "○",
    "free": "◇",
    "infeasible": "✕",
    "nothing learned": "–",
    "unmeasured": "–",
}
"""The mark of every band, and of every other status beside a reference."""

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
_COMPARED_COLUMNS = (
    "layer",
    "reference layer",
    "status",
    "verdict",
    "NC1 (trace ratio)",
    "Gram distance",
    "spectrum distance",
    "effective rank",
    "of the reference",
)
_ORIGIN_COLUMNS = (
    "rows",
    "ignored_rows",
    "nonfinite_rows",
    "classes_present",
    "width",
    "feature_dtype",
    "scatter",
    "between_rank",
    "nc4_rows",
    "nc4_sampled",
    "unlabelled_rows",
    "mixed_rows",
)
_PAPYAN = "Papyan, Han & Donoho 2020"
CONVENTIONS = (
    (
        "center",
        "the centre of M in NC1, NC2 and NC3: class (m) or sample (g)",
        f"m: {_PAPYAN}, Wu & Papyan 2024; g: Zhu et al. 2021, Zhou et al. 2022, Rangamani et al. 2023",
    ),
    (
        "within",
        "S_W as sample, (1/N) Σ_i, or class, (1/C) Σ_c (1/n_c) Σ_{i∈c}",
        "class: He & Su 2023, balanced form",
    ),
    (
        "between",
        "S_B weighted by class (1/C) or sample (n_c/N)",
        "sample: He & Su 2023, imbalanced form",
    ),
    ("divide_by_classes", "whether nc1_pinv is divided by C", "not: He & Su 2023"),
    (
        "center_head",
        "whether the head's rows are centred over classes in NC3 and the _head metrics",
        f"not: {_PAPYAN}, Zhu et al. 2021",
    ),
)
"""Every switch of a `Convention`: its name, what it chooses, and who chose what."""


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


class Values(NamedTuple):
    """All metrics (rows) of all layers (columns), in tables that fit a printed page, and the footnotes."""

    tables: list[Table]
    notes: list[str]


def number(value: float) -> str:
    """Return a number of three significant digits, an en dash for NaN."""
    if isinstance(value, int):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.3g}"


def metric_value(name: str, value: float) -> str:
    """Return the value of a metric, shares of rows in percent."""
    if METRICS[name].unit != "share of rows" or math.isnan(value):
        return number(value)
    return f"{100 * value:.2f} %"


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
    order = present[np.argsort(-severity, kind="stable")]
    rows = [_class_row(columns, spread, c) for c in order[:MOST_CLASSES].tolist()]
    left = len(order) - len(rows)
    remark = f"{left} more classes, less spread than these, are left out." if left else ""
    return Table(_CLASS_COLUMNS, rows, remark)


def _class_row(columns: Mapping[str, Any], spread: Floats, c: int) -> list[Cell]:
    unknown = np.full(len(spread), math.nan)
    nearest = columns.get("nearest_class", np.full(len(spread), -1))[c].item()
    return [
        _sortable(c),
        _sortable(columns["count"][c].item()),
        _with_interval(columns, "variance", c),
        _with_interval(columns, "mean_norm", c),
        _sortable(spread[c].item()),
        _sortable(columns.get("worst_cosine", unknown)[c].item()),
        _sortable(nearest if nearest >= 0 else math.nan),
        _with_interval(columns, "ncc_accuracy", c),
    ]


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


def all_values(report: CollapseReport) -> Values:
    """Return every metric of every layer, with the reason as a footnote where there is no value."""
    notes: dict[str, int] = {}
    measured = [name for name in METRICS if any(name in layer for layer in report.values())]
    names, tables = list(report), []
    for first in range(0, len(names), _LAYERS_ABREAST):
        part = names[first : first + _LAYERS_ABREAST]
        rows = [
            [Cell(metric), *(_value_cell(report[name], metric, notes) for name in part)]
            for metric in measured
        ]
        remark = f"Layers {first + 1} to {first + len(part)} of {len(names)}"
        tables.append(Table(("metric", *part), rows, remark if len(part) < len(names) else ""))
    return Values(tables, list(notes))


def _value_cell(layer: LayerReport, metric: str, notes: dict[str, int]) -> Cell:
    why, known = missing(layer, metric), beside(layer, metric, partial(metric_value, metric))
    if why:
        return Cell(f"–{known}", "", notes.setdefault(why, len(notes) + 1), why)
    error = layer.standard_errors.get(metric)
    spread = "" if error is None else f" ± {number(error)}"
    return Cell(metric_value(metric, layer[metric]) + spread + known)


def log_slopes(history: History) -> Table | None:
    """Return the slopes of the final layer over the epochs of the last run; None of one report."""
    if len(history.last) < 2:
        return None
    final = list(history[-1][1])[-1]
    rows = [
        [Cell(metric), *(Cell(number(value)) for value in trend[:5]), Cell(trend.why)]
        for metric, trend in history.trends(layers=[final]).get(final, {}).items()
    ]
    columns = ("metric", "slope", "95 % interval from", "to", "r", "reports", "remark")
    return Table(columns, rows) if rows else None


def meanings() -> Table:
    """Return what the catalogue says of every metric."""
    rows = []
    for name, metric in METRICS.items():
        texts = (name, metric.meaning, metric.formula, _target(metric), metric.source)
        rows.append(list(map(Cell, texts)))
    return Table(("metric", "meaning", "formula", "at collapse", "source"), rows)


def _target(metric: Metric) -> str:
    """Return the value at collapse, empty where none is implied."""
    if metric.at_collapse is None or metric.unit != "share of rows":
        return "" if metric.at_collapse is None else number(metric.at_collapse)
    return f"{100 * metric.at_collapse:.0f} %"


def compared(comparison: Comparison) -> Table:
    """Return the verdict of every layer beside the reference, with the figures it rests on."""
    rows = []
    for name, layer in comparison.items():
        nc1 = layer.metrics.get("nc1_trace_ratio")
        distances = layer.gram_distance, layer.spectrum_distance
        figures = (math.nan if nc1 is None else nc1.measured, *distances, *layer.ranks[:2])
        status = f"{MARKS[layer.status]} {layer.status}"
        words = (name, layer.reference_layer, status, layer.verdict)
        rows.append([*map(Cell, words), *(Cell(number(figure)) for figure in figures)])
    return Table(_COMPARED_COLUMNS, rows)


def layer_origins(report: CollapseReport) -> Table | None:
    """Return how the numbers of every layer came about; None where nothing is known."""
    layers = {name: layer.provenance for name, layer in report.items()}
    used = [key for key in _ORIGIN_COLUMNS if any(key in origin for origin in layers.values())]
    if not used:
        return None
    rows = [
        [Cell(name), *(Cell(_scalar(origin.get(key))) for key in used)]
        for name, origin in layers.items()
    ]
    return Table(("layer", *(key.replace("_", " ") for key in used)), rows)


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


def _scalar(value: Any) -> str:
    """Return a plain value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)
