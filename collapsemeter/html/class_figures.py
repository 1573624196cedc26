"""The figures about single classes and their pairs: cosines, histogram, rows per class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..metrics.layer import LayerReport
from ..metrics.pairs import COSINE_BINS
from ..stats.linalg import Floats
from .figures import EARLIER, canvas, picture, present
from .inline import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 200  # classes up to which each is drawn by itself
_FEWEST_PAIRS = 3
_WRITTEN = 12  # classes up to which a matrix has its values written in


def cosines(layer: LayerReport) -> list[Picture]:
    """Return the cosines of class means with each other and with the head, class by class."""
    classes = present(layer)
    found = []
    gram = layer.matrices.get("means_gram_centred")
    due = f"{-1 / (classes.size - 1):.3g}" if classes.size > 1 else ""
    if gram is not None and (np.diag(gram) > 0).all():
        norms = np.sqrt(np.diag(gram))
        between = (gram / norms / norms[:, None]).clip(-1, 1)
        found.append(
            picture(
                "gram",
                "Cosines of the centred class means",
                f"At a simplex ETF: 1 on the diagonal, −1/(C−1) = {due} everywhere else.",
                lambda: _draw_matrix(between, classes, "class", "class"),
            )
        )
    head = layer.matrices.get("head_means_cosine")
    if head is not None:
        found.append(
            picture(
                "headmeans",
                "Cosines of the head's rows with the centred class means",
                f"At collapse the same matrix: 1 on the diagonal, {due} everywhere else.",
                lambda: _draw_matrix(head, classes, "class mean", "row of the head"),
            )
        )
    return found


def _draw_matrix(matrix: Floats, classes: Floats, across: str, down: str) -> Figure:
    figure, axes = canvas(5.4, 4.6)
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    axes.grid(visible=False)
    count = len(matrix)
    if count <= _WRITTEN:
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.62 else "black"
            size = 9 if count <= 8 else 7
            text = axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=size
            )
            text.set_in_layout(False)  # inside its cell, whatever the layout
    step = max(1, -(-count // 20))
    ticks = range(0, count, step)
    axes.set_xticks(
        ticks, [str(classes[t]) for t in ticks], fontsize=9, rotation=0 if count < 15 else 90
    )
    axes.set_yticks(ticks, [str(classes[t]) for t in ticks], fontsize=9)
    axes.set(xlabel=across, ylabel=down)
    figure.colorbar(image, ax=axes, label="cosine")
    return figure


def histogram(layer: LayerReport) -> Picture | None:
    """Return how many pairs of class means have which cosine; None where it was not counted, or is one pair."""
    counts = layer.vectors.get("means_cosine_histogram")
    if counts is None or counts.size != COSINE_BINS or counts.sum() < _FEWEST_PAIRS:
        return None
    due = -1 / (present(layer).size - 1)
    return picture(
        "histogram",
        "Cosines of all pairs of centred class means",
        f"{counts.sum():,.0f} pairs; at a simplex ETF all are −1/(C−1) = {due:.3g} (dotted line).",
        lambda: _draw_histogram(counts, due),
    )


def _draw_histogram(counts: Floats, due: float) -> Figure:
    figure, axes = canvas(5.4, 3.3)
    edges = np.linspace(-1, 1, len(counts) + 1)
    axes.stairs(counts, edges, fill=True, color=EARLIER)
    axes.axvline(due, color="#1A1A1A", linestyle=":", linewidth=1.6)
    held = np.flatnonzero(counts)
    low, high = edges[held[0]], edges[held[-1] + 1]
    axes.set_xlim(max(-1, min(low, due) - 0.05), min(1, max(high, due) + 0.05))
    axes.set(xlabel="cosine", ylabel="pairs of classes")
    axes.locator_params(axis="x", nbins=6)
    return figure


def rows_per_class(layer: LayerReport) -> Picture | None:
    """Return the rows of every class as bars; None beyond 200 classes, or where they are not known."""
    counts = layer.per_class.get("count")
    if counts is None or not 1 < counts.size <= _MANY:
        return None
    return picture(
        "rows",
        "Rows per class",
        f"{counts.min():,} to {counts.max():,} rows in each of {counts.size} classes.",
        lambda: _draw_rows(counts),
    )


def _draw_rows(counts: Floats) -> Figure:
    figure, axes = canvas(5.4, 3.3)
    axes.bar(np.arange(counts.size), counts, width=0.8, color=EARLIER)
    axes.set(xlabel="class", ylabel="rows")
    axes.locator_params(axis="x", integer=True)
    axes.locator_params(axis="y", integer=True, nbins=5)
    return figure
