"""Intervals as bars in the figures over depth."""

from __future__ import annotations

from matplotlib.figure import Figure

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.html.figures import _draw_intervals


def bars(intervals: dict[str, tuple[float, float]], log: bool = False) -> list[list[list[float]]]:
    axes = Figure().subplots()
    layers = {"conv": LayerReport({}), "fc": LayerReport({}, intervals=intervals)}
    _draw_intervals(axes, CollapseReport(layers), "nc1_cdnv", log)
    return [bar.get_segments()[0].tolist() for bar in axes.collections]


def test_a_layer_with_an_interval_has_a_bar_at_its_depth() -> None:
    assert bars({"nc1_cdnv": (0.5, 2.0)}) == [[[1.0, 0.5], [1.0, 2.0]]]
    assert bars({"nc2_equinorm": (0.5, 2.0)}) == []


def test_a_bar_from_zero_is_drawn_where_there_is_a_zero() -> None:
    assert bars({"nc1_cdnv": (0.0, 2.0)}) == [[[1.0, 0.0], [1.0, 2.0]]]
    assert bars({"nc1_cdnv": (0.0, 2.0)}, log=True) == []
