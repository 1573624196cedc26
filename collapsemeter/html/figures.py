"""The figures over layers and epochs; the template lays out what they return."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ..comparison.result import Comparison
from ..report.criteria import missing
from ..report.drawing import evenly, readable
from ..report.figure import (
    FINAL,
    HEAD,
    PANELS,
    Panel,
    draw_panel,
    drawable,
    layer_colours,
    layer_names,
    top_of,
)
from ..report.history import Entries, History
from ..report.report import CollapseReport
from ..report.trust_words import beside, trust
from ..stats.linalg import Floats
from .picture import EARLIER, REFERENCE, Picture, picture
from .tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NO_VALUE = "#D9D9D9"
_LONGEST = 24
_ROOM = 34  # characters under an axis
_SLANTED = 6  # names under an axis where they must be slanted
_LARGEST_LOG = 700.0  # of float64


def six_panels(history: History) -> list[Picture]:
    """Return the six panels of Papyan, Han & Donoho 2020: against epochs, or of one epoch against depth."""
    names = layer_names(history)
    colours = layer_colours(names)
    report, pictures = history[-1][1], list[Picture]()
    zero = history.terminal_phase().step
    for panel in PANELS:
        with picture(pictures, panel.title, _panel_caption(panel, history), 4.6, 3.1) as axes:
            if len(history) > 1:
                draw_panel(axes, panel, history, names, colours)
                axes.set_xlabel("epoch")
                axes.locator_params(axis="x", integer=True)
                if zero is not None:
                    axes.axvline(zero, color=REFERENCE, linestyle=":", linewidth=1.4, zorder=1)
            else:
                _draw_against_depth(axes, panel, report)
            axes.set_title("", loc="left")  # the caption has it
    return pictures


def _panel_caption(panel: Panel, history: History) -> str:
    several, report = len(history) > 1, history[-1][1]
    layer = report.final
    values = []
    for metric in filter(None, (panel.metric, panel.of_head)):
        why, words = missing(layer, metric), beside(layer, metric)
        values.append(f"{metric}: {why}" if why else f"{metric} {number(layer[metric])}{words}")
    layers = [layer] if several else report.values()
    bars = "Shaded" if several else "Grey bars"
    known = (
        f" {bars}: 95 % intervals."
        if any(panel.metric in each.intervals for each in layers)
        else ""
    )
    return f"At the final layer: {'; '.join(values)}.{known}"


def _draw_against_depth(axes: Axes, panel: Panel, report: CollapseReport) -> None:
    values = _dots(axes, report, panel.metric, panel.log, 34)
    if np.isfinite(values).any():
        depth = np.arange(len(report))
        axes.plot(depth, values, color=EARLIER, linewidth=1.3, zorder=2)
        if panel.of_head:
            heads = _values(report, panel.of_head, panel.log)
            axes.scatter(depth, heads, marker="x", c=HEAD, s=46, linewidths=1.8, zorder=4)
        if not panel.log:
            top = top_of(axes)
            axes.set_ylim(-0.04 * top, 1.08 * top)


def depth_pictures(history: Entries, comparison: Comparison | None) -> list[Picture]:
    """Return fuzziness, with the fitted law, and NC1 of every layer; of several epochs the latter of all."""
    report, pictures = history[-1][1], list[Picture]()
    slope, r = report.separation_law()
    law = "A line is fitted from three layers on."
    if math.isfinite(slope):
        word, factor = "shrinks" if slope < 0 else "grows", math.exp(abs(slope))
        law = f"It {word} {factor:.3g} times a layer (fitted line; slope {slope:.3g}, "
        law += f"r = {r:.3f}; He & Su 2023)."
    fuzziness = f"nc1_fuzziness, tr(S_W S_B⁺), of every layer. {law}"
    for metric, title, caption in (
        ("nc1_fuzziness", "Separation fuzziness against depth", fuzziness),
        ("nc1_pinv", "NC1 against depth", "nc1_pinv, tr(S_W S_B⁺)/C, of every layer."),
    ):
        predicted = _predicted(report, comparison, metric)
        caption += _reference_words(predicted)
        with picture(pictures, title, caption, height=3.5) as axes:
            _draw_profile(axes, report, metric, predicted)
    if len(history) > 1:
        _add_epochs(pictures, history)
    return pictures


def _predicted(report: CollapseReport, comparison: Comparison | None, metric: str) -> Floats:
    """Return the values of the reference, NaN in layers that have none."""
    compared = [None if comparison is None else comparison.layers.get(name) for name in report]
    gaps = [None if layer is None else layer.metrics.get(metric) for layer in compared]
    return np.array([math.nan if gap is None else gap.reference for gap in gaps])


def _reference_words(predicted: Floats) -> str:
    known = predicted[np.isfinite(predicted)]
    if not known.size:
        return ""
    if (known > 0).all():
        return " Dashed: the reference."
    if (known > 0).any():
        return " Dashed: the reference where it is positive; elsewhere it is zero, below the axis."
    return " The reference is zero, below the axis."


def _draw_profile(axes: Axes, report: CollapseReport, metric: str, predicted: Floats) -> None:
    values = _dots(axes, report, metric, True, 42)
    known = np.isfinite(values)
    if not known.any():
        return
    depth = np.arange(len(report))
    slope, _ = report.separation_law()
    if metric == "nc1_fuzziness" and math.isfinite(slope):
        height = np.log(values[known]).mean() - slope * depth[known].mean()
        line = np.exp(np.clip(height + slope * depth, -_LARGEST_LOG, _LARGEST_LOG))
        axes.plot(depth, line, color=HEAD, linewidth=1.4)
    else:
        axes.plot(depth, values, color=EARLIER, linewidth=1.3)
    above = np.where(predicted > 0, predicted, math.nan)
    axes.plot(depth, above, color=REFERENCE, linestyle="--", marker="D", markersize=4)
    axes.set_ylabel(metric)


def _add_epochs(pictures: list[Picture], history: Entries) -> None:
    """Add log10 of NC1, layers against epochs of one run."""
    from matplotlib import colormaps

    names = layer_names(history)
    values = np.array([[_value(report, name) for _, report in history] for name in names])
    logs = np.log10(values, out=np.full_like(values, math.nan), where=values > 0)
    caption = "log10 of nc1_pinv of every layer (the final one at the bottom) at every epoch; "
    caption += "darker is lower. Grey: no value." if np.isnan(logs).any() else "darker is lower."
    height = min(1.6 + 0.32 * len(names), 7)
    with picture(pictures, "NC1 over epochs", caption, 8.4, height, wide=True) as axes:
        shades = colormaps["cividis"].with_extremes(bad=_NO_VALUE)
        masked = np.ma.masked_invalid(logs)
        image = axes.imshow(masked, aspect="auto", cmap=shades, interpolation="nearest")
        axes.grid(visible=False)
        rows = evenly(len(names), 20)
        axes.set_yticks(rows, [readable(names[row], _LONGEST) for row in rows], parse_math=False)
        columns = evenly(len(history), 12)
        axes.set_xticks(columns, [str(history[column][0]) for column in columns])
        axes.set_xlabel("epoch")
        if np.isfinite(logs).any():
            axes.figure.colorbar(image, ax=axes, label="log10 nc1_pinv")


def _value(report: CollapseReport, name: str) -> float:
    return report[name].get("nc1_pinv", math.nan) if name in report else math.nan


def _values(report: CollapseReport, metric: str, log: bool) -> Floats:
    """Return a metric of every layer as it can be drawn, NaN where it cannot."""
    values = [drawable(layer.get(metric, math.nan), log) for layer in report.values()]
    return np.array(values, float)


def _dots(axes: Axes, report: CollapseReport, metric: str, log: bool, size: float) -> Floats:
    """Draw a dot a layer above the layers' names, or say why there is none; return the values."""
    values = _values(report, metric, log)
    if np.isfinite(values).any():
        colours = [EARLIER] * (len(report) - 1) + [FINAL]
        axes.scatter(np.arange(len(report)), values, c=colours, s=size, zorder=3)
        _draw_intervals(axes, report, metric, log)
        axes.set_yscale("log" if log else "linear")
    else:
        words = "no value:\n" + "\n".join(textwrap.wrap(missing(report.final, metric), 30))
        axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    # As many names, at even distances, as there is room for.
    labels = [readable(name, _LONGEST) for name in report]
    slanted = sum(map(len, labels)) > _ROOM
    ticks = evenly(len(labels), _SLANTED if slanted else len(labels))
    style: dict[str, Any] = {"rotation": 35, "ha": "right"} if slanted else {}
    axes.set_xticks(ticks, [labels[tick] for tick in ticks], parse_math=False, **style)
    axes.set_xlim(-0.4, len(labels) - 0.6)
    return values


def _draw_intervals(axes: Axes, report: CollapseReport, metric: str, log: bool) -> None:
    """Draw the 95 % interval of every layer as a bar; on a logarithmic axis one from zero has no end."""
    for depth, layer in enumerate(report.values()):
        low, high, _ = (drawable(part, log) for part in trust(layer, metric))
        if math.isfinite(low) and math.isfinite(high):
            axes.vlines(depth, low, high, color=REFERENCE, linewidth=1.6, zorder=2)
