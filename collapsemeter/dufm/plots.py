"""Figures of ``collapsemeter dufm``: structures of one problem, and losses along a sweep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.drawing import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .optimum import Geometry
    from .overview import Overview, Sweep, SweptPoint
    from .solution import Solution

COLOURS = {"dnc": "#0072B2", "srg": "#D55E00", "blocks": "#E69F00", "pairs": "#CC79A7",
           "zero": "#777777", "solved": "#009E73"}  # fmt: skip
OTHERS = ("#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#E69F00", "#F0E442", "#777777")
DRAWN = 4
"""Structures whose singular values are drawn."""


def plot_problem(known: Overview, solution: Solution | None, path: str) -> None:
    """Draw the loss of every structure, and the singular values of the best, layer by layer."""
    write_figure(lambda: _draw_problem(known, solution), path)


def _shown(known: Overview, solution: Solution | None) -> list[tuple[str, Geometry, float]]:
    """Name, geometry and loss: of partial solutions only the best, which stands for all."""
    partial = [r for r in known.references if "learned" in r.parameters][:1]
    whole = [r for r in known.references if "learned" not in r.parameters or r in partial]
    shown: list[tuple[str, Geometry, float]] = [(r.name, r, r.loss) for r in whole]
    if solution is not None:
        shown.append(("solved", solution, solution.loss))
    return sorted(shown, key=lambda entry: entry[2])


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for every structure: its own, or one that none of them has."""
    reserved = {COLOURS.get(name) for name in names}
    spare = iter([colour for colour in OTHERS if colour not in reserved])
    return {name: COLOURS.get(name) or next(spare, "#777777") for name in names}


def _draw_problem(known: Overview, solution: Solution | None) -> Figure:
    from matplotlib.figure import Figure

    shown, depth = _shown(known, solution), known.problem.depth
    colours = _colours([name for name, _, _ in shown])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    losses, spectra = figure.subplots(1, 2, width_ratios=[1, 1.5])
    names, rows = [name for name, _, _ in shown], np.arange(len(shown))
    bars = losses.barh(rows, [loss for _, _, loss in shown], color=[colours[n] for n in names])
    losses.bar_label(bars, fmt="{:.5g}", padding=4, fontsize=9)
    losses.set_yticks(rows, names)
    losses.invert_yaxis()
    losses.set(title="Loss of every structure", xlabel="loss")
    losses.margins(x=0.2)
    losses.grid(axis="y", visible=False)
    whole = [entry for entry in shown if not entry[0].startswith(("zero", "partial"))]
    _spectra(spectra, whole[:DRAWN], colours, depth)
    problem = known.problem
    figure.suptitle(f"K = {problem.num_classes}, L = {depth}, c = {problem.canonical_decay:.3g}")
    return figure


def _spectra(
    axes: Axes, shown: list[tuple[str, Geometry, float]], colours: dict[str, str], depth: int
) -> None:
    """Singular values over the largest of their layer, side by side in every layer."""
    step = 0.8 / max(len(shown), 1)
    for place, (name, geometry, _) in enumerate(shown):
        for layer in range(1, depth + 2):
            values = geometry.singular_values(layer, before_activation=True)
            values = values / (values[0] or 1.0)
            leading = values[: geometry.problem.num_classes]
            offset = layer - 0.4 + step * (place + 0.15)
            along = offset + 0.7 * step * np.arange(leading.size) / max(leading.size - 1, 1)
            axes.plot(along, leading, ".-", color=colours[name], markersize=5, linewidth=0.7,
                      label=name if layer == 1 else None)  # fmt: skip
    axes.set_xticks(range(1, depth + 2), [*(f"H_{k}" for k in range(1, depth + 1)), "output"])
    axes.set(title="Singular values of the class means, before the ReLU", ylim=(-0.03, 1.06),
             ylabel="over the largest")  # fmt: skip
    axes.grid(axis="x", visible=False)
    if shown:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=DRAWN)


def plot_sweep(sweep: Sweep, points: list[SweptPoint], path: str) -> None:
    """Draw the loss of every structure against the swept value."""
    write_figure(lambda: _draw_sweep(sweep, points), path)


def _draw_sweep(sweep: Sweep, points: list[SweptPoint]) -> Figure:
    from matplotlib.figure import Figure

    curves = _curves(points)
    colours = _colours(list(curves))
    compared = len(set(curves) - {"zero"}) > 1
    figure = Figure(figsize=(11 if compared else 6.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2 if compared else 1, squeeze=False, sharex=True)[0]
    losses, ratios = panels[0], panels[-1]
    values = np.array([point.value for point in points])
    scales = np.array([point.known.ratio(1.0) for point in points])
    for label, curve in curves.items():
        style: dict[str, Any] = {"color": colours[label], "label": label}
        style |= {"linestyle": "none", "marker": "x"} if label == "solved" else {"marker": "."}
        losses.plot(values, curve, **style)
        if compared and label != "zero":
            ratios.plot(values, curve * scales, **style)
    ratios.set(title="Loss over that of collapse", xlabel=sweep.name, ylabel="ratio")
    losses.set(title="Loss of every structure", xlabel=sweep.name, ylabel="loss")
    for axes in panels:
        if sweep.whole:
            axes.locator_params(axis="x", integer=True)
        else:
            axes.set_xscale("log")
    losses.legend(frameon=False, fontsize=9)
    return figure


def _curves(points: list[SweptPoint]) -> dict[str, Any]:
    """Losses of each structure at every point, NaN where it does not exist; no partial ones."""
    curves: dict[str, Any] = {}
    for index, point in enumerate(points):
        losses = {r.name: r.loss for r in point.known.references if "learned" not in r.parameters}
        if point.solution is not None:
            losses["solved"] = point.solution.loss
        for name, loss in losses.items():
            curves.setdefault(name, np.full(len(points), math.nan))[index] = loss
    return curves
