"""Ends of intervals and estimates in event files, tables and trackers, beside the plain values."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.metrics.uncertainty import NAMES
from collapsemeter.sinks import CsvSink, LoggerSink, TensorBoardSink


@pytest.fixture
def measured() -> CollapseReport:
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 6
    head = rng.standard_normal((6, 20))
    features = head[labels] + 0.5 * rng.standard_normal((48, 20))
    moments = cm.ClassMoments.from_batch(features, labels, 6)
    bottom = cm.measure(moments)
    return CollapseReport({"conv": bottom, "fc": cm.measure(moments, head=head)})


def written(folder: Path, report: CollapseReport, **options: Any) -> dict[str, float]:
    with TensorBoardSink(folder, **options) as sink:
        sink.write(3, report)
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_ends_as_curves_of_their_own(
    tmp_path: Path, measured: CollapseReport
) -> None:
    curves = written(tmp_path / "all", measured)
    plain = written(tmp_path / "plain", measured, intervals=False)
    assert plain.items() <= curves.items()  # the tags of plain values do not change
    expected = {}
    for place, layer in [*measured.items(), ("head", measured.final)]:
        assert set(NAMES) <= layer.intervals.keys()
        for metric, (low, high) in layer.intervals.items():
            expected[f"{metric}.low/{place}"], expected[f"{metric}.high/{place}"] = low, high
            expected[f"{metric}.estimate/{place}"] = layer.estimates.get(metric, math.nan)
    expected = {
        tag: float(np.float32(value)) for tag, value in expected.items() if math.isfinite(value)
    }
    assert {tag: curves[tag] for tag in curves.keys() - plain.keys()} == expected


def test_a_metric_without_an_interval_has_its_plain_curve_alone(tmp_path: Path) -> None:
    layer = LayerReport({"nc1_cdnv": 0.5}, estimates={"nc1_cdnv": 0.75})
    assert written(tmp_path, CollapseReport({"fc": layer})) == {"nc1_cdnv/fc": 0.5}


def test_trackers_get_them_where_that_is_asked_for(measured: CollapseReport) -> None:
    logged: list[dict[str, float]] = []

    class Run:
        def log(self, data: dict[str, float], step: int) -> None:
            logged.append(data)

    LoggerSink(Run()).write(1, measured)
    LoggerSink(Run(), intervals=True).write(1, measured)
    plain, both = logged
    assert plain == measured.scalars()
    assert plain.items() <= both.items()
    assert both["nc1_trace_ratio.low/fc"] == measured.final.intervals["nc1_trace_ratio"][0]


def test_a_table_has_columns_for_them(tmp_path: Path, measured: CollapseReport) -> None:
    CsvSink(tmp_path / "run.csv").write(1, measured)
    with (tmp_path / "run.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    layer = measured.final
    for metric in NAMES:
        ends = float(row[f"{metric}.low"]), float(row[f"{metric}.high"])
        assert ends == layer.intervals[metric]
        assert float(row[f"{metric}.estimate"]) == layer.estimates[metric]
    assert row["nc4_mismatch.low"] == ""
    assert row["flags"] == " ".join(layer.flags)
