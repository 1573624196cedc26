"""The figures over the classes of the final layer: spectra, cosines, a histogram, rows per class."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..comparison.result import Comparison
from ..metrics.layer import LayerReport
from ..metrics.pairs import COSINE_BINS
from ..report.figure import FINAL, HEAD, top_of
from ..report.report import CollapseReport
from ..stats.linalg import Floats
from .picture import EARLIER, REFERENCE, Picture, canvas, picture
from .tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 200  # classes up to which each is drawn by itself
_FEWEST_PAIRS = 3
_WRITTEN = 12  # classes up to which a matrix has its values written in
_Classes = npt.NDArray[np.intp]


def singular_values(report: CollapseReport, comparison: Comparison | None) -> list[Picture]:
    """Return the singular values of the class means of the final layer, centred and not."""
    layer, pictures = report.final, []
    centred = layer.vectors.get("means_singular_values", np.zeros(0))
    if centred.size:
        rank = _present(layer).size - 1
        feasible = rank <= centred.size
        where = "left of the dotted line" if feasible else f"this layer has room for {centred.size}"
        caption = (
            f"A simplex ETF has C − 1 = {rank} equal ones ({where}) and no others; "
            f"effective rank {number(layer.get('means_effective_rank', math.nan))}."
        )
        line = rank if feasible else None
        title = "Singular values of the centred class means"
        pictures.append(picture(title, caption, lambda: _draw_spectrum(centred, None, line)))
    measured, predicted = _uncentred(report, comparison)
    if measured.size:
        caption = "Solid: measured. Dashed: the reference, at the measured norm."
        if predicted is None:
            caption = "An orthogonal frame has C equal ones."
        title = "Singular values of the uncentred class means"
        pictures.append(picture(title, caption, lambda: _draw_spectrum(measured, predicted, None)))
    return pictures


def _uncentred(
    report: CollapseReport, comparison: Comparison | None
) -> tuple[Floats, Floats | None]:
    """Return the singular values measured and, scaled to the same norm, those of the reference."""
    name = list(report)[-1]
    if comparison is not None and name in comparison:
        measured, predicted = comparison[name].singular_values
        if measured.size and np.linalg.norm(predicted) > 0:
            return measured, predicted * np.linalg.norm(measured) / np.linalg.norm(predicted)
    return report.final.vectors.get("means_singular_values_uncentred", np.zeros(0)), None


def _draw_spectrum(measured: Floats, predicted: Floats | None, rank: int | None) -> Figure:
    figure, axes = canvas(5.4, 3.1)
    style: dict[str, Any] = {"markersize": 4 if measured.size <= 60 else 2, "linewidth": 1.2}
    axes.plot(np.arange(1, measured.size + 1), measured, "o-", color=FINAL, **style)
    if predicted is not None:
        axes.plot(np.arange(1, predicted.size + 1), predicted, "D--", color=HEAD, **style)
    if rank is not None:
        axes.axvline(rank + 0.5, color=REFERENCE, linestyle=":", linewidth=1.5)
    axes.set(xlabel="index", ylabel="singular value")
    axes.set_ylim(0, 1.08 * top_of(axes))
    axes.locator_params(axis="x", integer=True)
    return figure


def cosines(layer: LayerReport) -> list[Picture]:
    """Return the cosines of class means with each other and with the head, class by class."""
    classes = _present(layer)
    at_etf = f"{_etf_cosine(classes):.3g}" if classes.size > 1 else ""
    pictures = []
    gram = layer.matrices.get("means_gram_centred")
    if gram is not None and (np.diag(gram) > 0).all():
        norms = np.sqrt(np.diag(gram))
        between = (gram / norms / norms[:, None]).clip(-1, 1)
        title = "Cosines of the centred class means"
        caption = f"At a simplex ETF: 1 on the diagonal, −1/(C−1) = {at_etf} everywhere else."
        draw = partial(_draw_matrix, between, classes, "class", "class")
        pictures.append(picture(title, caption, draw))
    head = layer.matrices.get("head_means_cosine")
    if head is not None:
        title = "Cosines of the head's rows with the centred class means"
        caption = f"At collapse the same matrix: 1 on the diagonal, {at_etf} everywhere else."
        draw = partial(_draw_matrix, head, classes, "class mean", "row of the head")
        pictures.append(picture(title, caption, draw))
    return pictures


def _draw_matrix(matrix: Floats, classes: _Classes, across: str, down: str) -> Figure:
    figure, axes = canvas(5.4, 4.6)
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    axes.grid(visible=False)
    count = len(matrix)
    if count <= _WRITTEN:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.62 else "black"
            size = 9 if count <= 8 else 7
            text = axes.text(j, i, f"{value:.2f}", color=colour, fontsize=size)
            text.set(ha="center", va="center")
            text.set_in_layout(False)  # inside its cell, whatever the layout
    ticks = range(0, count, max(1, -(-count // 20)))
    labels = [str(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, labels, fontsize=9, rotation=0 if count < 15 else 90)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set(xlabel=across, ylabel=down)
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


def histogram(layer: LayerReport) -> Picture | None:
    """Return how many pairs of class means have which cosine; None where that is not known, or one pair."""
    counts = layer.vectors.get("means_cosine_histogram", np.zeros(0))
    classes = _present(layer)
    if counts.size != COSINE_BINS or counts.sum() < _FEWEST_PAIRS or classes.size < 2:
        return None
    at_etf = _etf_cosine(classes)
    return picture(
        "Cosines of all pairs of centred class means",
        f"{counts.sum():,.0f} pairs; at a simplex ETF all are −1/(C−1) = {at_etf:.3g} (dotted line).",
        lambda: _draw_histogram(counts, at_etf),
    )


def _draw_histogram(counts: Floats, at_etf: float) -> Figure:
    figure, axes = canvas(5.4, 3.3)
    edges = np.linspace(-1, 1, len(counts) + 1)
    axes.stairs(counts, edges, fill=True, color=EARLIER)
    axes.axvline(at_etf, color=HEAD, linestyle=":", linewidth=1.6)
    filled = np.flatnonzero(counts)
    low, high = min(edges[filled[0]], at_etf), max(edges[filled[-1] + 1], at_etf)
    axes.set_xlim(max(-1, low - 0.05), min(1, high + 0.05))
    axes.set(xlabel="cosine", ylabel="pairs of classes")
    axes.locator_params(axis="x", nbins=6)
    return figure


def rows_per_class(layer: LayerReport) -> Picture | None:
    """Return the rows of every class as bars; None beyond 200 classes, or where they are not known."""
    counts = layer.per_class.get("count")
    if counts is None or not 1 < counts.size <= _MANY:
        return None
    caption = f"{counts.min():,} to {counts.max():,} rows in each of {counts.size} classes."
    return picture("Rows per class", caption, lambda: _draw_rows(counts))


def _draw_rows(counts: Floats) -> Figure:
    figure, axes = canvas(5.4, 3.3)
    axes.bar(np.arange(counts.size), counts, width=0.8, color=EARLIER)
    axes.set(xlabel="class", ylabel="rows")
    axes.locator_params(axis="x", integer=True)
    axes.locator_params(axis="y", integer=True, nbins=5)
    return figure


def _present(layer: LayerReport) -> _Classes:
    """Return the classes of a layer that have rows, as numbers."""
    return np.flatnonzero(layer.per_class.get("count", np.zeros(0)) > 0)


def _etf_cosine(classes: _Classes) -> float:
    return -1 / (classes.size - 1)
