"""The six panels of Papyan, Han & Donoho 2020 on the page."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..report.criteria import missing
from ..report.figure import (
    FINAL,
    HEAD,
    PANELS,
    Panel,
    draw_panel,
    layer_colours,
    layer_names,
    top_of,
)
from ..report.history import History
from ..report.report import CollapseReport
from .figures import EARLIER, canvas, name_layers, no_value, picture, values_of
from .inline import Picture
from .words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL = (4.6, 3.1)


def six_panels(history: History) -> list[Picture]:
    """Return the six panels of Papyan, Han & Donoho 2020: against epochs, or of one epoch against depth."""
    names = layer_names(history)
    colours = layer_colours(names)
    several = len(history) > 1

    def draw(panel: Panel) -> Figure:
        figure, axes = canvas(*_SMALL)
        if several:
            draw_panel(axes, panel, history, names, colours)
            axes.set_xlabel("epoch")
            axes.locator_params(axis="x", integer=True)
        else:
            _against_depth(axes, panel, history[-1][1])
        axes.set_title("", loc="left")  # the caption has it
        return figure

    return [
        picture(
            f"panel{i}",
            panel.title,
            _panel_caption(panel, history[-1][1]),
            partial(draw, panel),
        )
        for i, panel in enumerate(PANELS)
    ]


def _panel_caption(panel: Panel, report: CollapseReport) -> str:
    layer = report.final
    said = []
    for metric in filter(None, (panel.metric, panel.of_head)):
        value = layer.get(metric, math.nan)
        known = math.isfinite(value)
        said.append(f"{metric} {number(value)}" if known else f"{metric}: {missing(layer, metric)}")
    return f"At the final layer: {'; '.join(said)}."


def _against_depth(axes: Axes, panel: Panel, report: CollapseReport) -> None:
    values = values_of(report, panel.metric, panel.log)
    depth = np.arange(len(report))
    if np.isfinite(values).any():
        axes.plot(depth, values, color=EARLIER, linewidth=1.3, zorder=2)
        colours = [EARLIER] * (len(depth) - 1) + [FINAL]
        axes.scatter(depth, values, c=colours, s=34, zorder=3)
        heads = (
            values_of(report, panel.of_head, panel.log)
            if panel.of_head
            else np.full(len(depth), math.nan)
        )
        axes.scatter(depth, heads, marker="x", c=HEAD, s=46, linewidths=1.8, zorder=4)
        if panel.log:
            axes.set_yscale("log")
        else:
            top = top_of(axes)
            axes.set_ylim(-0.04 * top, 1.08 * top)
    else:
        axes.text(0.5, 0.5, no_value(report.final, panel.metric), ha="center", va="center",
                  transform=axes.transAxes, wrap=True)  # fmt: skip
        axes.set_yticks([])
    name_layers(axes, list(report))
