"""The six panels of Papyan, Han & Donoho 2020, figures 2 to 7, for every layer of a run."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..stats.undefined import REASONS
from .drawing import check_ending, evenly, readable, write_figure
from .history import Entries, History
from .trust_words import trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..metrics.layer import LayerReport


class Panel(NamedTuple):
    """One panel."""

    title: str
    metric: str  # drawn solid
    of_head: str | None = None  # drawn dashed
    log: bool = False


PANELS = (
    Panel("NC2 · equinorm", "nc2_equinorm", "nc2_equinorm_head"),
    Panel("NC2 · equiangularity", "nc2_equiangular", "nc2_equiangular_head"),
    Panel("NC2 · maximal angle", "nc2_max_angle", "nc2_max_angle_head"),
    Panel("NC3 · self-duality", "nc3_self_duality"),
    Panel("NC1 · within-class variation", "nc1_pinv", log=True),
    Panel("NC4 · nearest-centre mismatch", "nc4_mismatch"),
)

# Vermilion against blues: told apart with every kind of colour blindness, and in grey by width.
FINAL = "#D55E00"
# The head runs on top of the means: where the two agree both must be seen.
HEAD = "#1A1A1A"
DASHES = (0, (4, 2))
PALE = 0.3  # of earlier runs
_SHADE = 0.15  # of intervals
_ZERO_ERROR = "#555555"
_MOST_NAMES = 9
_LONGEST_NAME = 36
_ROUND_OFF = 1e-9


def plot(
    history: Entries,
    path: str | os.PathLike[str],
    *,
    zero_error_epoch: int | None = None,
    layers: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draw figures 2 to 7 of Papyan, Han & Donoho 2020 into an .svg or .png: six panels against epochs; ValueError where nothing can be drawn."""
    check_ending(path)
    history = checked_history(history)
    names = layer_names(history, layers)
    zero = history.terminal_phase().step if zero_error_epoch is None else zero_error_epoch
    write_figure(lambda: _draw(history, names, zero, title), path)


def checked_history(history: Entries) -> History:
    """Return the history in order, run after run; ValueError where it is empty or mixes phases."""
    steps = History(history)
    if not any(report.layers for _, report in steps):
        raise ValueError("there is nothing to draw: the history holds no layer")
    phases = sorted({report.phase for _, report in steps})
    if len(phases) > 1:
        raise ValueError(
            f"the history mixes the phases {', '.join(phases)}, which are different quantities: draw "
            f"one, for example [(e, r) for e, r in history if r.phase == {phases[0]!r}]"
        )
    return steps


def layer_names(history: Entries, layers: Sequence[str] | None = None) -> list[str]:
    """Return the layers of all steps in the order of the network, or those of them that are asked for."""
    last = list(history[-1][1])
    seen = dict.fromkeys(name for _, report in history for name in report)
    names = [name for name in seen if name not in last] + last
    if layers is None:
        return names
    unknown = [name for name in layers if name not in names]
    if unknown or not layers:
        what = (
            f"no layer is named {', '.join(map(repr, unknown))}" if unknown else "no layer chosen"
        )
        raise ValueError(f"{what}; measured: {', '.join(names)}")
    return [name for name in names if name in layers]


def _draw(history: History, names: list[str], zero_error: int | None, title: str | None) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True)
    colours = layer_colours(names)
    headed = False
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        headed |= draw_panel(axes, panel, history, names, colours)
        if zero_error is not None:
            axes.axvline(zero_error, color=_ZERO_ERROR, linestyle=":", linewidth=1.4, zorder=1)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
    if title is not None:
        figure.suptitle(readable(title, 90), parse_math=False)
    rows = _legend(figure, history, names, zero_error, headed)
    figure.set_figheight(5.9 + 0.24 * rows)
    return figure


def layer_colours(names: list[str]) -> dict[str, Any]:
    """Return a colour for every layer: blues that darken with depth, vermilion for the final one."""
    from matplotlib import colormaps

    earlier = names[:-1]
    deepest = max(len(earlier) - 1, 1)
    shades = [colormaps["Blues"](0.35 + 0.6 * depth / deepest) for depth in range(len(earlier))]
    return dict(zip(names, [*shades, FINAL], strict=True))


def draw_panel(
    axes: Axes, panel: Panel, history: History, names: list[str], colours: dict[str, Any]
) -> bool:
    """Draw one panel; return whether a line of the head is in it."""
    *earlier, last = history.runs.values()
    for run in earlier:
        _draw_run(axes, panel, run, names, colours, PALE)
    headed = _draw_run(axes, panel, last, names, colours, None)
    axes.set_title(panel.title, loc="left")
    if not axes.lines:
        why = _why_missing(history, names[-1], panel.metric)
        axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    elif panel.log:
        axes.set_yscale("log")
    else:
        # From zero, with room for a line that lies on it.
        top = top_of(axes)
        axes.set_ylim(-0.025 * top, 1.06 * top)
        axes.locator_params(axis="y", nbins=5)
    return headed


def _draw_run(
    axes: Axes,
    panel: Panel,
    run: Entries,
    names: list[str],
    colours: dict[str, Any],
    alpha: float | None,
) -> bool:
    """Draw the lines of one run; return whether one of the head is among them."""
    headed = False
    for name in names:
        final = name == names[-1]
        style = {"color": colours[name], "linewidth": 2.6 if final else 1.3, "alpha": alpha}
        _stroke(axes, _points(run, name, panel.metric, panel.log), style)
        if final and alpha is None:
            _shade(axes, panel, [(step, report[name]) for step, report in run if name in report])
        if panel.of_head is not None:
            style |= {"linewidth": 1.6, "linestyle": DASHES}
            style["color"] = HEAD if final else colours[name]
            headed |= _stroke(axes, _points(run, name, panel.of_head, panel.log), style)
    return headed


def _shade(axes: Axes, panel: Panel, layers: list[tuple[int, LayerReport]]) -> None:
    """Shade the 95 % intervals of the final layer where it has them."""
    ends = [
        (step, *(drawable(end, panel.log) for end in trust(layer, panel.metric)[:2]))
        for step, layer in layers
    ]
    if any(math.isfinite(low) and math.isfinite(high) for _, low, high in ends):
        steps, lows, highs = zip(*ends, strict=True)
        axes.fill_between(steps, lows, highs, color=FINAL, alpha=_SHADE, linewidth=0, zorder=1)


def top_of(axes: Axes) -> float:
    """Return the largest value drawn, 1 where all are zero to round-off, which would fill the panel."""
    top = float(axes.dataLim.y1)
    return top if top > _ROUND_OFF else 1.0


def _points(run: Entries, name: str, metric: str, log: bool) -> list[tuple[int, float]]:
    """Steps at which a metric was measured, with NaN where it has no value that can be drawn."""
    measured = [(step, report[name]) for step, report in run if name in report]
    return [(step, drawable(layer[metric], log)) for step, layer in measured if metric in layer]


def drawable(value: float, log: bool) -> float:
    """Return the value as it can be drawn: a logarithmic axis has no zero, and no axis ends of float64."""
    if not math.isfinite(value) or (log and value <= 0):
        return math.nan
    return min(max(value, 1e-150 if log else -1e150), 1e150)


def _stroke(axes: Axes, points: list[tuple[int, float]], style: dict[str, Any]) -> bool:
    """Draw one line; return whether it has a point."""
    if all(math.isnan(value) for _, value in points):
        return False
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, marker="o", markersize=4.5, markevery=_alone(values), **style)
    return True


def _alone(values: Sequence[float]) -> list[int]:
    """Points with a gap on either side, which a line would not show."""
    gap = [True, *map(math.isnan, values), True]
    return [i for i in range(len(values)) if gap[i] and not gap[i + 1] and gap[i + 2]]


def _why_missing(history: History, name: str, metric: str) -> str:
    reasons = [report[name].reason(metric) for _, report in history if name in report]
    code = next((code for code in reversed(reasons) if code is not None), None)
    if code is None:
        return "not measured"
    return "no value:\n" + "\n".join(textwrap.wrap(REASONS.get(code, code), 26))


def _legend(
    figure: Figure, history: History, names: list[str], zero_error: int | None, headed: bool
) -> int:
    """Put the layers below on the left, what kinds of line mean on the right; return the rows."""
    kinds: list[tuple[str, dict[str, Any]]] = []
    if headed:
        kinds.append(("class means", {"color": FINAL, "linewidth": 2.6}))
        kinds.append(("head", {"color": HEAD, "linewidth": 1.6, "linestyle": DASHES}))
    earlier = len(history.runs) - 1
    if earlier:
        words = "an earlier run" if earlier == 1 else f"{earlier} earlier runs"
        kinds.append((words, {"color": FINAL, "linewidth": 2.6, "alpha": PALE}))
    if zero_error is not None:
        dots = {"color": _ZERO_ERROR, "linewidth": 1.4, "linestyle": ":"}
        kinds.append((f"zero training error (epoch {zero_error})", dots))
    if len(names) > _MOST_NAMES:
        kinds.append((f"{len(names)} layers, darker is deeper", {"color": "none"}))
    colours = layer_colours(names)
    layers = [
        (label, {"color": colours[name], "linewidth": 2.6 if name == names[-1] else 1.3})
        for name, label in _labels(names).items()
    ]
    widest = max(len(label) for label, _ in layers)
    columns = min(-(-len(layers) // 3), max(1, (72 if kinds else 110) // (widest + 8)))
    _key(figure, layers, "outside lower left", columns)
    _key(figure, kinds, "outside lower right", 1)
    return max(-(-len(layers) // columns), len(kinds))


def _key(figure: Figure, entries: list[tuple[str, dict[str, Any]]], loc: Any, columns: int) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **style) for _, style in entries]
    numbers = [str(i) for i in range(len(entries))]
    legend = figure.legend(lines, numbers, loc=loc, ncols=columns, frameon=False)
    # Set afterwards: a label that starts with an underscore would be left out of the legend.
    for text, (label, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def _labels(names: list[str]) -> dict[str, str]:
    """Return what the legend calls the layers it names: all, or some at even distances."""
    depths = evenly(len(names), _MOST_NAMES)
    labels = [readable(names[depth], _LONGEST_NAME) for depth in depths]
    if len(set(labels)) < len(depths):  # what tells them apart was shortened away
        labels = [f"{depth + 1}: {label}" for depth, label in zip(depths, labels, strict=True)]
    return {names[depth]: label for depth, label in zip(depths, labels, strict=True)}
