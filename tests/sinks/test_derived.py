"""Curves of depth and of log-slopes, beside those of the metrics."""

from __future__ import annotations

import numpy as np

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.report.history import History
from collapsemeter.sinks import TensorBoardSink
from collapsemeter.sinks.derived import Derived


def falling(step: int, phase: str = "live", error: float | None = None) -> CollapseReport:
    noise = np.random.default_rng(step).normal()
    layers = {
        f"l{depth}": LayerReport(
            {"nc1_pinv": np.exp(-depth - 0.2 * step + 0.1 * noise), "nc1_trace_ratio": 4.0**-depth}
        )
        for depth in range(4)
    }
    report = CollapseReport(layers, phase)
    return report if error is None else report.with_training_error(error)


def test_depth_is_a_curve_from_three_layers_on():
    values = Derived().of(1, falling(1))
    depth = falling(1).depth_profile()
    assert values == {"depth/collapse_depth": depth.collapse.depth}
    assert Derived().of(1, CollapseReport({"fc": LayerReport({"nc1_trace_ratio": 0.1})})) == {}
    assert Derived().of(1, CollapseReport({})) == {}


def test_slopes_are_those_of_the_history_so_far():
    derived, entries = Derived(), []
    for step in range(1, 9):
        report = falling(step, error=0.0 if step > 3 else 0.5)
        entries.append((step, report))
        values = derived.of(step, report)
        assert ("log_slope/nc1_pinv" in values) is (step >= 7)  # four since the fourth
    trend = History(entries).trends()["l3"]["nc1_pinv"]
    measured = [values[f"log_slope/nc1_pinv{end}"] for end in ("", ".low", ".high")]
    np.testing.assert_allclose(measured, trend[:3], rtol=1e-12)
    assert values["log_slope/since"] == 4


def test_a_step_that_is_written_again_counts_once():
    derived = Derived()
    for step in (1, 2, 3, 3, 3):
        values = derived.of(step, falling(step))
    assert "log_slope/nc1_pinv" not in values


def test_phases_have_curves_of_their_own():
    derived = Derived()
    derived.of(1, falling(1))
    assert set(derived.of(1, falling(1, "frozen-eval"))) == {"depth/frozen-eval/collapse_depth"}


def test_tensorboard_gets_them():
    written = []

    class Writer:
        def add_scalar(self, tag, value, step):
            written.append((tag, step))

    sink = TensorBoardSink(Writer())
    for step in range(5):
        sink.write(step, falling(step))
    assert ("depth/collapse_depth", 0) in written
    assert {("log_slope/nc1_pinv", 3), ("log_slope/nc1_pinv.low", 4)} <= set(written)
    assert sink.failures == 0
