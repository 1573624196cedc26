"""A run over time: the onset of the terminal phase as recorded, and log-slopes from there on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.metrics.line_fit import fit_line
from collapsemeter.report.history import History, read_history
from collapsemeter.report.trends import trend_words
from collapsemeter.sinks import JsonlSink

STEPS = (1, 2, 4, 6, 8, 10)
ERRORS = (0.5, 0.1, 0.0, 0.02, 0.0, 0.0)


def falling(errors=ERRORS, noise=0.1) -> list[tuple[int, CollapseReport]]:
    rng = np.random.default_rng(0)
    entries = []
    for step, error in zip(STEPS, errors, strict=True):
        value = math.exp(-0.3 * step + noise * rng.normal())
        layers = {
            "conv": LayerReport({"nc1_pinv": 2.0 if step < 8 else 0.0, "nc3_cosine": 0.5}),
            "fc": LayerReport({"nc1_pinv": value, "nc2_etf_error": math.nan}),
        }
        report = CollapseReport(layers)
        entries.append((step, report if error is None else report.with_training_error(error)))
    return entries


def test_the_onset_is_the_first_step_at_zero_error():
    onset = History(falling()).terminal_phase()
    assert onset.step == 4
    assert onset.words == (
        "epoch 4 is the first at zero training error; epoch 2, the last known one before it, had 10 %; "
        "above zero again at 6"
    )


def test_errors_that_are_given_may_be_of_every_epoch():
    history = History(falling((None,) * 6))
    assert history.terminal_phase({1: 0.5, 2: 0.1, 3: 0, 4: 0}).step == 3
    assert "may have begun before" in history.terminal_phase({4: 0.0}).words


def test_nothing_is_guessed_where_no_error_is_known():
    onset = History(falling((None,) * 6)).terminal_phase()
    assert onset.step is None
    assert "no training error is recorded" in onset.words
    never = History(falling((0.5, 0.2, 0.1, 0.004, 0.01, 0.03))).terminal_phase()
    assert never == (None, "the training error never was zero: the lowest is 0.4 %, of epoch 6")


@pytest.mark.parametrize("error", [-0.1, 2, math.nan, "0", True, None])
def test_what_is_no_error_is_refused(error):
    with pytest.raises(ValueError, match=r"training error .*: pass the share of rows"):
        CollapseReport({}).with_training_error(error)


@pytest.mark.parametrize("step", [0.5, None, "1", math.nan])
def test_a_step_between_two_is_not_cut(step):
    """Reports of epochs 0.2 and 0.7 would be one epoch, and the first of them gone."""
    with pytest.raises(ValueError, match=f"{step} is not a whole number"):
        History([(step, CollapseReport({}))])


def test_trends_are_least_squares_on_logarithms():
    history = History(falling((None,) * 6))
    trend = history.trends()["fc"]["nc1_pinv"]
    logs = np.log([report["fc"]["nc1_pinv"] for _, report in history])
    np.testing.assert_allclose(trend.slope, np.polyfit(STEPS, logs, 1)[0], rtol=1e-12)
    np.testing.assert_allclose(trend.r, np.corrcoef(STEPS, logs)[0, 1], rtol=1e-12)
    line = fit_line(np.array(STEPS, float), logs, correlated=True)  # epochs deviate together
    assert (trend.low, trend.high) == (line.low, line.high)
    assert (trend.points, trend.left_out, trend.why) == (6, 0, "")


def test_trends_begin_with_the_terminal_phase_where_it_is_known():
    history = History(falling())
    logs = [math.log(report["fc"]["nc1_pinv"]) for _, report in history[2:]]
    slope = history.trends()["fc"]["nc1_pinv"].slope
    np.testing.assert_allclose(slope, np.polyfit(STEPS[2:], logs, 1)[0], rtol=1e-12)
    assert history.trends(since=0)["fc"]["nc1_pinv"].points == 6


@pytest.mark.parametrize("reports", [0, 1, 2])
def test_what_happens_over_time_takes_two_reports(reports):
    record = History(falling()[:reports]).over_time()
    assert bool(record) == (reports == 2)
    if record:
        assert record["trends"]["fc"]["nc1_pinv"]["why"].endswith("there are 2")


def test_values_without_a_logarithm_are_counted():
    trends = History(falling((None,) * 6)).trends()
    conv = trends["conv"]["nc1_pinv"]
    assert (conv.points, conv.left_out) == (4, 2)
    assert trend_words("nc1_pinv", conv).endswith("4 reports, 2 without a logarithm left out")
    etf = trends["fc"]["nc2_etf_error"]
    assert math.isnan(etf.slope)
    assert etf.why == "it needs 4 reports with a positive value, there are 0"
    assert trend_words("nc2_etf_error", etf) == f"nc2_etf_error: no slope: {etf.why}"
    assert "nc3_cosine" not in trends["conv"]  # it may be negative
    assert list(History(falling()).trends(layers=["fc"])) == ["fc"]


def test_a_history_on_disk_keeps_the_error(tmp_path):
    sink = JsonlSink(tmp_path / "run.jsonl", run="a")
    for step, report in falling():
        sink.write(step, report)
    assert read_history(tmp_path / "run.jsonl").terminal_phase().step == 4


def test_a_line_with_another_error_is_left_out(tmp_path):
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path)
    sink.write(1, CollapseReport({}).with_training_error(0.5))
    sink.write(2, CollapseReport({}))
    path.write_text(path.read_text().replace('"training_error": 0.5', '"training_error": 7'))
    history = read_history(path)
    assert len(history) == 1
    assert history.notes == (
        f"1 of 2 lines was left out: {path}, line 1: training_error is 7, expected a share from 0 to 1",
    )


def test_only_the_last_run_counts():
    first = [(step, report) for step, report in falling()]
    runs = [
        (step, CollapseReport(r.layers, provenance={"run": run}))
        for run in "ab"
        for step, r in first
    ]
    history = History(runs)
    assert history.terminal_phase().step is None
    assert history.trends()["fc"]["nc1_pinv"].points == 6
