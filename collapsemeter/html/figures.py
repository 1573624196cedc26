"""The figures of the report: what is drawn, and its caption; each as a `Picture`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison.result import Comparison
from ..metrics.layer import LayerReport
from ..report.criteria import missing
from ..report.drawing import readable, svg
from ..report.figure import FINAL, HEAD, drawable, layer_names, top_of
from ..report.history import Entries
from ..report.report import CollapseReport
from ..stats.linalg import Floats
from .inline import Picture, inline
from .words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "#555555"
EARLIER = "#2171B5"
_NO_VALUE = "#D9D9D9"
_LONGEST = 24
_ROOM = 34  # characters under an axis
_SLANTED = 6  # names under an axis where they must be slanted
_LARGEST_LOG = 700.0  # of float64


def picture(prefix: str, title: str, caption: str, draw: Callable[[], Figure]) -> Picture:
    """Draw a figure for the page; the prefix is that of its ids."""
    return Picture(title, inline(svg(draw).decode(), prefix, f"{title}. {caption}"), caption)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of that size in inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def no_value(layer: LayerReport, metric: str) -> str:
    return "no value:\n" + "\n".join(textwrap.wrap(missing(layer, metric), 30))


def values_of(report: CollapseReport, metric: str, log: bool) -> Floats:
    """Return a metric of every layer as it can be drawn, NaN where it cannot."""
    values = [drawable(layer.get(metric, math.nan), log) for layer in report.values()]
    return np.array(values, float)


def name_layers(axes: Axes, names: Sequence[str]) -> None:
    """Put layer names under the axis: as many, at even distances, as there is room for."""
    labels = [readable(name, _LONGEST) for name in names]
    slanted = sum(map(len, labels)) > _ROOM
    ticks = evenly(len(names), _SLANTED if slanted else len(names))
    axes.set_xticks(
        ticks,
        [labels[tick] for tick in ticks],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
    )
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
    axes.set_xlim(-0.4, len(names) - 0.6)


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many places of a list, the first and the last among them.

    Examples
    --------
    >>> evenly(10, 4), evenly(3, 4), evenly(1, 4)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    kept = min(count, most)
    return sorted({round(i * (count - 1) / max(kept - 1, 1)) for i in range(kept)})


def profile(report: CollapseReport, comparison: Comparison | None) -> list[Picture]:
    """Return separation fuzziness and NC1 of every layer on a logarithmic axis, with the fitted law."""
    slope, r = report.separation_law()
    if math.isfinite(slope):
        word = "shrinks" if slope < 0 else "grows"
        law = (
            f"It {word} {math.exp(abs(slope)):.3g} times a layer (fitted line; slope {slope:.3g}, "
        )
        law += f"r = {r:.3f}; He & Su 2023)."
    else:
        law = "A line is fitted from three layers on."
    fuzziness = f"nc1_fuzziness, tr(S_W S_B⁺), of every layer. {law}"
    pinv = "nc1_pinv, tr(S_W S_B⁺)/C, of every layer."
    found = []
    for metric, title, caption in (
        ("nc1_fuzziness", "Separation fuzziness against depth", fuzziness),
        ("nc1_pinv", "NC1 against depth", pinv),
    ):
        predicted = _predicted(report, comparison, metric)
        found.append(
            picture(
                metric,
                title,
                caption + _reference_words(predicted),
                partial(_draw_profile, report, metric, predicted),
            )
        )
    return found


def _predicted(report: CollapseReport, comparison: Comparison | None, metric: str) -> Floats:
    values = np.full(len(report), math.nan)
    for i, name in enumerate(report):
        if comparison is not None and name in comparison:
            gap = comparison[name].metrics.get(metric)
            values[i] = math.nan if gap is None else gap.reference
    return values


def _reference_words(predicted: Floats) -> str:
    known = predicted[np.isfinite(predicted)]
    if not known.size:
        return ""
    if (known > 0).all():
        return " Dashed: the reference."
    if (known > 0).any():
        return " Dashed: the reference where it is positive; elsewhere it is zero, below the axis."
    return " The reference is zero, below the axis."


def _draw_profile(report: CollapseReport, metric: str, predicted: Floats) -> Figure:
    figure, axes = canvas(5.4, 3.5)
    drawn = values_of(report, metric, log=True)
    depth = np.arange(len(report))
    if not np.isfinite(drawn).any():
        axes.text(0.5, 0.5, no_value(report.final, metric), ha="center", va="center",
                  transform=axes.transAxes)  # fmt: skip
        axes.set_yticks([])
        name_layers(axes, list(report))
        return figure
    axes.scatter(depth, drawn, c=[EARLIER] * (len(depth) - 1) + [FINAL], s=42, zorder=3)
    slope, _ = report.separation_law()
    if metric == "nc1_fuzziness" and math.isfinite(slope):
        seen = np.isfinite(drawn)
        height = np.log(drawn[seen]).mean() - slope * depth[seen].mean()
        line = np.exp(np.clip(height + slope * depth, -_LARGEST_LOG, _LARGEST_LOG))
        axes.plot(depth, line, color="#1A1A1A", linewidth=1.4)
    else:
        axes.plot(depth, drawn, color=EARLIER, linewidth=1.3)
    above = np.where(predicted > 0, predicted, math.nan)
    axes.plot(depth, above, color=REFERENCE, linestyle="--", marker="D", markersize=4)
    axes.set_yscale("log")
    axes.set_ylabel(metric)
    name_layers(axes, list(report))
    return figure


def over_epochs(history: Entries) -> Picture | None:
    """Return log10 of NC1, layers against epochs of one run; None of a single epoch."""
    if len(history) < 2:
        return None
    names = layer_names(history)
    values = np.array(
        [
            [report[name].get("nc1_pinv", math.nan) if name in report else math.nan for _, report in history]
            for name in names
        ],
        float,
    )  # fmt: skip
    logs = np.full_like(values, math.nan)
    np.log10(values, out=logs, where=values > 0)
    caption = "log10 of nc1_pinv of every layer (the final one at the bottom) at every epoch"
    caption += (
        "; darker is lower. Grey: no value." if np.isnan(logs).any() else "; darker is lower."
    )
    steps = [step for step, _ in history]
    return picture("epochs", "NC1 over epochs", caption, lambda: _draw_epochs(logs, names, steps))


def _draw_epochs(logs: Floats, names: list[str], steps: list[int]) -> Figure:
    from matplotlib import colormaps

    figure, axes = canvas(8.4, min(1.6 + 0.32 * len(names), 7))
    map_ = colormaps["cividis"].with_extremes(bad=_NO_VALUE)
    image = axes.imshow(
        np.ma.masked_invalid(logs), aspect="auto", cmap=map_, interpolation="nearest"
    )
    axes.grid(visible=False)
    rows = evenly(len(names), 20)
    axes.set_yticks(rows, [readable(names[row], _LONGEST) for row in rows])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    columns = evenly(len(steps), 12)
    axes.set_xticks(columns, [str(steps[column]) for column in columns])
    axes.set_xlabel("epoch")
    if np.isfinite(logs).any():
        figure.colorbar(image, ax=axes, label="log10 nc1_pinv")
    return figure


def singular_values(report: CollapseReport, comparison: Comparison | None) -> list[Picture]:
    """Return the singular values of the class means of the final layer, centred and not."""
    layer, found = report.final, []
    centred = layer.vectors.get("means_singular_values")
    if centred is not None and centred.size:
        rank = present(layer).size - 1
        feasible = rank <= centred.size
        where = "left of the dotted line" if feasible else f"this layer has room for {centred.size}"
        found.append(
            picture(
                "centred",
                "Singular values of the centred class means",
                f"A simplex ETF has C − 1 = {rank} equal ones ({where}) and no others; "
                f"effective rank {number(layer.get('means_effective_rank', math.nan))}.",
                lambda: _draw_spectrum(centred, None, rank if feasible else None),
            )
        )
    pair = _spectra(report, comparison)
    if pair is not None:
        measured, predicted = pair
        caption = (
            "Solid: measured." if predicted is not None else "An orthogonal frame has C equal ones."
        )
        caption += " Dashed: the reference, at the measured norm." if predicted is not None else ""
        found.append(
            picture(
                "uncentred",
                "Singular values of the uncentred class means",
                caption,
                lambda: _draw_spectrum(measured, predicted, None),
            )
        )
    return found


def _spectra(
    report: CollapseReport, comparison: Comparison | None
) -> tuple[Floats, Floats | None] | None:
    """Uncentred singular values measured and, scaled to the same norm, of the reference."""
    name = list(report)[-1]
    if comparison is not None and name in comparison:
        measured, predicted = comparison[name].singular_values
        if measured.size and np.linalg.norm(predicted) > 0:
            return measured, predicted * np.linalg.norm(measured) / np.linalg.norm(predicted)
    values = report.final.vectors.get("means_singular_values_uncentred")
    return None if values is None or not values.size else (values, None)


def _draw_spectrum(measured: Floats, predicted: Floats | None, rank: int | None) -> Figure:
    figure, axes = canvas(5.4, 3.1)
    style: dict[str, Any] = {"markersize": 4 if measured.size <= 60 else 2}
    axes.plot(np.arange(1, measured.size + 1), measured, "o-", color=FINAL, linewidth=1.2, **style)
    if predicted is not None:
        axes.plot(
            np.arange(1, predicted.size + 1), predicted, "D--", color=HEAD, linewidth=1.2, **style
        )
    if rank is not None:
        axes.axvline(rank + 0.5, color=REFERENCE, linestyle=":", linewidth=1.5)
    axes.set(xlabel="index", ylabel="singular value")
    axes.set_ylim(0, 1.08 * top_of(axes))
    axes.locator_params(axis="x", integer=True)
    return figure


def present(layer: LayerReport) -> Any:
    """Return the classes of a layer that have rows, as numbers."""
    return np.flatnonzero(layer.per_class.get("count", np.zeros(0)) > 0)
