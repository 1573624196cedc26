"""The figures over the classes of the final layer: spectra, cosines, a histogram, rows per class."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..comparison.result import Comparison
from ..metrics.layer import LayerReport
from ..metrics.pairs import COSINE_BINS
from ..report.figure import FINAL, HEAD, top_of
from ..report.report import CollapseReport
from ..stats.linalg import Floats
from .picture import EARLIER, REFERENCE, Picture, picture
from .tables import number

_MANY = 200  # classes up to which each is drawn by itself
_FEWEST_PAIRS = 3
_WRITTEN = 12  # classes up to which a matrix has its values written in


def class_pictures(report: CollapseReport, comparison: Comparison | None) -> list[Picture]:
    """Return the figures over classes for which the final layer has the values."""
    layer, pictures = report.final, list[Picture]()
    counts = layer.per_class.get("count", np.zeros(0))
    classes = np.flatnonzero(counts > 0)
    etf_cosine = -1 / (classes.size - 1) if classes.size > 1 else math.nan
    _add_centred(pictures, layer, classes.size - 1)
    _add_uncentred(pictures, report, comparison)
    words = f"{etf_cosine:.3g}" if classes.size > 1 else ""
    gram = layer.matrices.get("means_gram_centred")
    if gram is not None and (np.diag(gram) > 0).all():
        norms = np.sqrt(np.diag(gram))
        cosines = (gram / norms / norms[:, None]).clip(-1, 1)
        title = "Cosines of the centred class means"
        caption = f"At a simplex ETF: 1 on the diagonal, −1/(C−1) = {words} everywhere else."
        _add_matrix(pictures, title, caption, cosines, classes, ("class", "class"))
    head = layer.matrices.get("head_means_cosine")
    if head is not None:
        title = "Cosines of the head's rows with the centred class means"
        caption = f"At collapse the same matrix: 1 on the diagonal, {words} everywhere else."
        _add_matrix(pictures, title, caption, head, classes, ("class mean", "row of the head"))
    _add_histogram(pictures, layer.vectors.get("means_cosine_histogram", np.zeros(0)), etf_cosine)
    if 1 < counts.size <= _MANY:
        _add_rows(pictures, counts)
    return pictures


def _add_centred(pictures: list[Picture], layer: LayerReport, rank: int) -> None:
    values = layer.vectors.get("means_singular_values", np.zeros(0))
    if not values.size:
        return
    feasible = rank <= values.size
    where = "left of the dotted line" if feasible else f"this layer has room for {values.size}"
    caption = (
        f"A simplex ETF has C − 1 = {rank} equal ones ({where}) and no others; "
        f"effective rank {number(layer.get('means_effective_rank', math.nan))}."
    )
    title = "Singular values of the centred class means"
    _add_spectrum(pictures, title, caption, values, rank=rank if feasible else None)


def _add_uncentred(
    pictures: list[Picture], report: CollapseReport, comparison: Comparison | None
) -> None:
    """Add the singular values measured and, scaled to the same norm, those of the reference."""
    values = report.final.vectors.get("means_singular_values_uncentred", np.zeros(0))
    predicted, name = None, list(report)[-1]
    caption = "An orthogonal frame has C equal ones."
    if comparison is not None and name in comparison:
        measured, reference = comparison[name].singular_values
        if measured.size and np.linalg.norm(reference) > 0:
            values = measured
            predicted = reference * np.linalg.norm(measured) / np.linalg.norm(reference)
            caption = "Solid: measured. Dashed: the reference, at the measured norm."
    if values.size:
        title = "Singular values of the uncentred class means"
        _add_spectrum(pictures, title, caption, values, predicted)


def _add_spectrum(
    pictures: list[Picture],
    title: str,
    caption: str,
    measured: Floats,
    predicted: Floats | None = None,
    rank: int | None = None,
) -> None:
    style: dict[str, Any] = {"markersize": 4 if measured.size <= 60 else 2, "linewidth": 1.2}
    with picture(pictures, title, caption, height=3.1) as axes:
        axes.plot(np.arange(1, measured.size + 1), measured, "o-", color=FINAL, **style)
        if predicted is not None:
            axes.plot(np.arange(1, predicted.size + 1), predicted, "D--", color=HEAD, **style)
        if rank is not None:
            axes.axvline(rank + 0.5, color=REFERENCE, linestyle=":", linewidth=1.5)
        axes.set(xlabel="index", ylabel="singular value")
        axes.set_ylim(0, 1.08 * top_of(axes))
        axes.locator_params(axis="x", integer=True)


def _add_matrix(
    pictures: list[Picture],
    title: str,
    caption: str,
    matrix: Floats,
    classes: npt.NDArray[np.intp],
    names: tuple[str, str],
) -> None:
    """Add cosines as colours, with their values where there is room."""
    count = len(matrix)
    with picture(pictures, title, caption, height=4.6) as axes:
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        axes.grid(visible=False)
        for (i, j), value in np.ndenumerate(matrix if count <= _WRITTEN else matrix[:0]):
            colour = "white" if abs(value) > 0.62 else "black"
            size = 9 if count <= 8 else 7
            text = axes.text(j, i, f"{value:.2f}", color=colour, fontsize=size)
            text.set(ha="center", va="center")
            text.set_in_layout(False)  # inside its cell, whatever the layout
        ticks = range(0, count, max(1, -(-count // 20)))
        labels = [str(classes[tick]) for tick in ticks]
        axes.set_xticks(ticks, labels, fontsize=9, rotation=0 if count < 15 else 90)
        axes.set_yticks(ticks, labels, fontsize=9)
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.figure.colorbar(image, ax=axes, label="cosine")


def _add_histogram(pictures: list[Picture], counts: Floats, etf_cosine: float) -> None:
    """Add how many pairs of class means have which cosine; of one pair it says nothing."""
    if counts.size != COSINE_BINS or counts.sum() < _FEWEST_PAIRS or math.isnan(etf_cosine):
        return
    title = "Cosines of all pairs of centred class means"
    caption = f"{counts.sum():,.0f} pairs; at a simplex ETF all are −1/(C−1) = {etf_cosine:.3g} (dotted line)."
    edges, filled = np.linspace(-1, 1, len(counts) + 1), np.flatnonzero(counts)
    low, high = min(edges[filled[0]], etf_cosine), max(edges[filled[-1] + 1], etf_cosine)
    with picture(pictures, title, caption) as axes:
        axes.stairs(counts, edges, fill=True, color=EARLIER)
        axes.axvline(etf_cosine, color=HEAD, linestyle=":", linewidth=1.6)
        axes.set_xlim(max(-1, low - 0.05), min(1, high + 0.05))
        axes.set(xlabel="cosine", ylabel="pairs of classes")
        axes.locator_params(axis="x", nbins=6)


def _add_rows(pictures: list[Picture], counts: Floats) -> None:
    caption = f"{counts.min():,} to {counts.max():,} rows in each of {counts.size} classes."
    with picture(pictures, "Rows per class", caption) as axes:
        axes.bar(np.arange(counts.size), counts, width=0.8, color=EARLIER)
        axes.set(xlabel="class", ylabel="rows")
        axes.locator_params(axis="x", integer=True)
        axes.locator_params(axis="y", integer=True, nbins=5)
