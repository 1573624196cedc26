"""Intervals in figures: as bars over depth, shaded over epochs."""

from __future__ import annotations

from matplotlib.figure import Figure

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.html.figures import _draw_intervals, six_panels
from collapsemeter.report.figure import FINAL, PANELS, draw_panel
from collapsemeter.report.history import History


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


def epochs(count: int, intervals: bool = True) -> History:
    ends = {"nc2_equinorm": (0.25, 1.0)} if intervals else {}
    layer = LayerReport({"nc2_equinorm": 0.5}, intervals=ends)
    return History((step, CollapseReport({"conv": layer, "fc": layer})) for step in range(count))


def test_over_epochs_the_final_layers_interval_is_shaded() -> None:
    for intervals, shades in ((True, 1), (False, 0)):
        axes = Figure().subplots()
        draw_panel(
            axes, PANELS[0], epochs(3, intervals), ["conv", "fc"], {"conv": "b", "fc": FINAL}
        )
        assert len(axes.collections) == shades
    axes = Figure().subplots()
    draw_panel(axes, PANELS[0], epochs(3), ["conv", "fc"], {"conv": "b", "fc": FINAL})
    corners = axes.collections[0].get_paths()[0].vertices
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([0, 0.25], [2, 1.0])


def test_captions_say_what_the_bars_and_shades_are() -> None:
    assert six_panels(epochs(1))[0].caption.endswith("Grey bars: 95 % intervals.")
    assert six_panels(epochs(2))[0].caption.endswith("Shaded: 95 % intervals.")
    assert "intervals" not in six_panels(epochs(1, intervals=False))[0].caption
