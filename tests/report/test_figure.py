"""The six-panel figure: what is drawn, that it is the same each time, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from collapsemeter import ClassMoments, CollapseReport, Head, LayerReport, decide, measure
from collapsemeter.report.drawing import evenly, readable
from collapsemeter.report.figure import PANELS, drawable, plot

CLASSES, WIDTH, ROWS = 4, 6, 48


def layer(epoch: int, seed: int, *, head: bool) -> LayerReport:
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    means = rng.standard_normal((CLASSES, WIDTH))
    features = means[labels] + 0.8**epoch * rng.standard_normal((ROWS, WIDTH))
    moments = ClassMoments.from_batch(features, labels, CLASSES)
    if not head:
        return measure(moments)
    weights = Head(means + rng.standard_normal(means.shape), np.zeros(CLASSES))
    return measure(moments, head=weights, decisions=decide(moments, features, labels, head=weights))


def history(names: tuple[str, ...] = ("conv1", "conv2", "fc"), epochs: int = 6) -> list[Any]:
    return [
        (
            epoch,
            CollapseReport(
                {name: layer(epoch, i, head=name == names[-1]) for i, name in enumerate(names)}
            ),
        )
        for epoch in range(epochs)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they were when they were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def curves(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def test_the_lines_are_the_values_of_the_reports(tmp_path: Path, drawn: list[Figure]) -> None:
    run = history()
    plot(run, tmp_path / "a.svg")
    actual = panels(drawn[0])
    assert list(actual) == [panel.title for panel in PANELS]
    for panel in PANELS:
        expected = []
        for name in ("conv1", "conv2", "fc"):
            for metric in (panel.metric, panel.of_head):
                if metric is not None and metric in run[0][1][name]:
                    values = [report[name][metric] for _, report in run]
                    expected.append(([epoch for epoch, _ in run], values))
        assert curves(actual[panel.title]) == expected, panel
        assert expected
    assert [axes.get_yscale() for axes in actual.values()] == ["linear"] * 4 + ["log", "linear"]
    for axes in (axes for axes in actual.values() if axes.get_yscale() == "linear"):
        assert (
            axes.dataLim.y1 < axes.get_ylim()[1] < 1.1 * axes.dataLim.y1
        )  # what is drawn fills it


def test_the_final_layer_stands_out_and_names_are_in_the_legend(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot(history(), tmp_path / "a.svg", zero_error_epoch=3, title="LeNet")
    nc1 = panels(drawn[0])["NC1 · within-class variation"]
    *earlier, final = [line for line in nc1.lines if line.get_linestyle() == "-"]
    assert all(line.get_linewidth() < final.get_linewidth() for line in earlier)
    assert legend(drawn[0]) == [
        "conv1",
        "conv2",
        "fc",
        "class means",
        "head",
        "zero training error (epoch 3)",
    ]
    for axes in drawn[0].axes:
        assert ([3, 3], [0, 1]) in curves(axes)
    assert drawn[0].get_suptitle() == "LeNet"


def test_layers_are_chosen_in_the_order_of_the_network(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(history(), tmp_path / "a.svg", layers=["conv2", "conv1"])
    assert legend(drawn[0]) == ["conv1", "conv2"]
    texts = panels(drawn[0])["NC3 · self-duality"].texts
    assert texts[0].get_text() == "no value:\nno classifier head belongs\nto this layer"


def test_the_history_is_drawn_in_the_order_of_its_epochs(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot(history()[::-1], tmp_path / "a.svg")
    assert curves(drawn[0].axes[0])[0][0] == [0, 1, 2, 3, 4, 5]


def with_values(*values: float | None) -> list[Any]:
    return [
        (epoch, CollapseReport({"fc": LayerReport({} if value is None else {"nc1_pinv": value})}))
        for epoch, value in enumerate(values)
    ]


def test_undefined_breaks_the_line_and_a_lone_point_has_a_dot(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot(with_values(1.0, math.nan, 0.5, 0.0, 0.2, 0.1), tmp_path / "a.svg")
    (line,) = panels(drawn[0])["NC1 · within-class variation"].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, math.nan, 0.5, math.nan, 0.2, 0.1])
    assert line.get_markevery() == [0, 2]


def test_not_measured_at_a_step_does_not_break_the_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    plot(with_values(1.0, None, 0.5), tmp_path / "a.svg")
    (line,) = panels(drawn[0])["NC1 · within-class variation"].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 2], [1.0, 0.5])
    assert panels(drawn[0])["NC2 · equinorm"].texts[0].get_text() == "not measured"


@pytest.mark.parametrize(
    ("value", "log", "drawn"),
    [
        (0.0, True, math.nan),
        (0.0, False, 0.0),
        (-1.0, True, math.nan),
        (1e-308, True, 1e-150),
        (-1e308, False, -1e150),
        (1e308, True, 1e150),
        (math.inf, False, math.nan),
    ],
)
def test_values_are_drawn_within_what_an_axis_has(value: float, log: bool, drawn: float) -> None:
    np.testing.assert_equal(drawable(value, log), drawn)


def test_a_single_report_can_be_drawn(tmp_path: Path) -> None:
    plot(history(epochs=1), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_same_history_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    plot(history(), tmp_path / f"a.{ending}", zero_error_epoch=3)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        plot(history(), tmp_path / f"b.{ending}", zero_error_epoch=3)
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    assert b"date" not in (tmp_path / f"a.{ending}").read_bytes()


def test_nothing_global_changes_and_pyplot_stays_out(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot(history(), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before
    script = (
        "import sys; from collapsemeter import CollapseReport, LayerReport; import collapsemeter.report.figure as f;"
        "assert 'matplotlib' not in sys.modules;"
        "f.plot([(0, CollapseReport({'fc': LayerReport({'nc1_pinv': 1.0})}))], sys.argv[1]);"
        "assert 'matplotlib' in sys.modules;"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "b.svg")], check=True)


ODD = (
    "_hidden",
    "$x^",
    "<script>alert(1)</script>",
    "two\nlines",
    "层",
    "\ud800",
    "",
    "a" * 300,
    "../..",
)


def test_odd_names_are_drawn_as_text(tmp_path: Path, drawn: list[Figure]) -> None:
    plot(history(ODD), tmp_path / "new" / "a.svg", title="<script>$")
    assert legend(drawn[0])[: len(ODD)] == [
        "_hidden",
        "$x^",
        "<script>alert(1)</script>",
        "two\\nlines",
        "\\u5c42",
        "\\ud800",
        "(no name)",
        "a" * 18 + "…" + "a" * 17,
        "../..",
    ]
    tags = {element.tag for element in ElementTree.parse(tmp_path / "new" / "a.svg").iter()}
    assert not any("script" in tag for tag in tags)


def test_many_layers_are_named_in_part_and_told_apart(tmp_path: Path, drawn: list[Figure]) -> None:
    names = (*(f"{'x' * 30}.{i}.{'y' * 30}" for i in range(19)), "fc")
    plot(history(names, epochs=2), tmp_path / "a.png")
    labels = legend(drawn[0])
    assert len(set(labels)) == len(labels) == 12
    assert (labels[0][:3], labels[8]) == ("1: ", "20: fc")
    assert labels[-1] == "20 layers, darker is deeper"
    assert len(panels(drawn[0])["NC1 · within-class variation"].lines) == 20


def test_nothing_overlaps(tmp_path: Path, drawn: list[Figure]) -> None:
    names = (*(f"encoder.layer.{i}.output" for i in range(12)), "classifier")
    plot(history(names, epochs=3), tmp_path / "a.png", zero_error_epoch=1, title="A title")
    figure = drawn[0]
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [each.get_window_extent() for each in figure.legends]
    for i, first in enumerate(boxes):
        assert first.x0 >= 0
        assert first.y0 >= 0
        assert first.x1 <= figure.bbox.x1
        for second in boxes[i + 1 :]:
            assert not first.padded(-1).overlaps(second.padded(-1))


@pytest.mark.parametrize("empty", [[], [(0, CollapseReport({}))]])
def test_an_empty_history_is_refused(tmp_path: Path, empty: Any) -> None:
    with pytest.raises(ValueError, match="there is nothing to draw: the history holds no layer"):
        plot(empty, tmp_path / "a.svg")


def test_mixed_phases_are_refused(tmp_path: Path) -> None:
    layers = {"fc": LayerReport({"nc1_pinv": 1.0})}
    mixed = [(0, CollapseReport(layers, phase="live")), (1, CollapseReport(layers))]
    with pytest.raises(
        ValueError, match=r"mixes the phases frozen-eval, live, .* if r.phase == 'frozen-eval'\]"
    ):
        plot(mixed, tmp_path / "a.svg")


def test_an_unknown_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer is named 'fc2'; measured: conv1, conv2, fc"):
        plot(history(), tmp_path / "a.svg", layers=["fc", "fc2"])
    with pytest.raises(ValueError, match="no layer chosen; measured: conv1, conv2, fc"):
        plot(history(), tmp_path / "a.svg", layers=[])


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"written as .svg or .png, got 'a.pdf'"):
        plot(history(), tmp_path / "a.pdf")


def test_matplotlib_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as caught:
        plot(history(), tmp_path / "a.svg")
    assert (
        str(caught.value)
        == "drawing the figure needs matplotlib: pip install 'collapsemeter[report]'"
    )


def test_a_name_is_shortened_in_the_middle_where_it_is_longer() -> None:
    name = "features.12.conv"
    assert readable(name, len(name)) == name
    assert readable(name, 15) == "feature…12.conv"
    assert readable("", 15) == "(no name)"


def test_places_at_even_distances_hold_the_first_and_the_last() -> None:
    assert [evenly(10, 4), evenly(3, 4), evenly(1, 4)] == [[0, 3, 6, 9], [0, 1, 2], [0]]


def test_the_terminal_phase_is_drawn_where_the_history_has_it(tmp_path):
    errors = [0.5, 0.0, 0.0, 0.0]
    known = [
        (step, report.with_training_error(error))
        for (step, report), error in zip(history(), errors, strict=False)
    ]
    plot(known, tmp_path / "a.svg")
    plot(known, tmp_path / "b.svg", zero_error_epoch=known[1][0])
    plot(history(), tmp_path / "c.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() != (tmp_path / "c.svg").read_bytes()
