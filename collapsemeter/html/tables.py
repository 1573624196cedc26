"""Numbers and codes as words, and the tables of the report as rows of text."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..metrics.catalogue import METRICS, Metric
from ..metrics.layer import LayerReport
from ..report.criteria import missing
from ..report.history import History
from ..report.report import CollapseReport
from ..report.trust_words import beside

if TYPE_CHECKING:
    from ..comparison.result import Comparison

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
        words = {
            "layer": name,
            "reference layer": layer.reference_layer,
            "status": f"{MARKS[layer.status]} {layer.status}",
            "verdict": layer.verdict,
        }
        figures = {
            "NC1 (trace ratio)": math.nan if nc1 is None else nc1.measured,
            "Gram distance": layer.gram_distance,
            "spectrum distance": layer.spectrum_distance,
            "effective rank": layer.ranks.measured,
            "of the reference": layer.ranks.reference,
        }
        rows.append(words | {title: number(figure) for title, figure in figures.items()})
    return Table(tuple(rows[0]), [list(map(Cell, row.values())) for row in rows])


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


def _scalar(value: Any) -> str:
    """Return a plain value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)
