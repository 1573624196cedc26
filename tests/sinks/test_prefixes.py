"""Streams and phases never share a curve: a prefix of a sink, of one write, or the phase of each report."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.report import tags
from collapsemeter.sinks import CsvSink, Fan, JsonlSink, LoggerSink, TensorBoardSink, to

STEP = 3
REPORTS = {
    phase: CollapseReport({"fc": LayerReport({"nc1_pinv": value})}, phase=phase)  # type: ignore[arg-type]
    for value, phase in enumerate(("live", "frozen-train", "frozen-eval"), 1)
}


class Curves:
    """What a tracker has: values by tag."""

    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def add(self, tag: str, value: float) -> None:
        self.curves.setdefault(tag, []).append(value)


class Writer(Curves):
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.add(tag, value)


class Mlflow(Curves):
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for tag, value in metrics.items():
            self.add(tag, value)


class Aim(Curves):
    def track(self, value: float, name: str | None = None, step: int | None = None) -> None:
        self.add(str(name), value)


class ClearML(Curves):
    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        assert title.endswith("nc1_pinv")  # a metric is a plot, and layers are its lines
        self.add(f"{title}/{series}", value)


class WandbRun(Curves):
    step = 0

    def __init__(self) -> None:
        super().__init__()
        self.defined: set[str] = set()

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined.add(name)

    def log(self, data: dict[str, float], step: int | None = None, commit: Any = None) -> None:
        for tag, value in data.items():
            if tag != "collapsemeter/step":
                assert any(tag.startswith(name.removesuffix("*")) for name in self.defined)
                self.add(tag, value)


TRACKERS = [Writer, Mlflow, Aim, ClearML, WandbRun]


@pytest.mark.parametrize("kind", TRACKERS)
def test_the_phase_by_option(kind: type[Curves]) -> None:
    tracker = kind()
    sink = to(tracker, prefix="{phase}/")
    for _ in range(2):
        for report in REPORTS.values():
            sink.write(STEP, report)
    assert tracker.curves == {
        "live/nc1_pinv/fc": [1, 1],
        "frozen-train/nc1_pinv/fc": [2, 2],
        "frozen-eval/nc1_pinv/fc": [3, 3],
    }


@pytest.mark.parametrize("kind", TRACKERS)
def test_streams_of_one_phase_have_prefixes_of_their_own(kind: type[Curves]) -> None:
    tracker = kind()
    fan = Fan(tracker, prefix="train/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two phases under one prefix
        fan.write(STEP, REPORTS["live"])
        fan.write(STEP, REPORTS["frozen-eval"])
    fan.write(STEP, REPORTS["frozen-eval"], prefix="val/")
    fan.write(STEP, REPORTS["frozen-eval"], prefix="")
    assert fan.failures == 0
    assert tracker.curves == {
        "train/nc1_pinv/fc": [1],
        "train/nc1_pinv/frozen-eval/fc": [3],
        "val/nc1_pinv/fc": [3],
        "nc1_pinv/fc": [3],
    }


def test_two_sinks_of_one_run_of_wandb_do_not_change_each_others_tags() -> None:
    run = WandbRun()
    train, val = LoggerSink(run, prefix="train/"), LoggerSink(run, prefix="val/")
    train.write(STEP, REPORTS["live"])
    val.write(STEP, REPORTS["frozen-eval"])
    assert run.curves == {"train/nc1_pinv/fc": [1], "val/nc1_pinv/fc": [3]}
    assert run.defined == {"collapsemeter/step", "train/nc1_pinv/*", "val/nc1_pinv/*"}


def test_files_have_a_prefix_behind_the_name_of_the_run(tmp_path: Path) -> None:
    with Fan(tmp_path / "a.jsonl", tmp_path / "a.csv", run="night", prefix="train/") as fan:
        fan.write(STEP, REPORTS["frozen-train"])
        fan.write(STEP, REPORTS["frozen-train"], prefix="val/")
        fan.write(STEP, REPORTS["frozen-train"], prefix="")
    for built in (
        JsonlSink(tmp_path / "a.jsonl", run="day", prefix="{phase}/"),
        CsvSink(tmp_path / "a.csv", run="day", prefix="{phase}/"),
    ):
        built.write(STEP, REPORTS["live"])
    runs = ["night/train", "night/val", "night", "day/live"]
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [line["run"] for line in lines] == [row["run"] for row in rows] == runs


def test_the_page_of_tensorboard_shows_the_curves_of_the_prefix() -> None:
    class Pages(Writer):
        def add_custom_scalars(self, layout: dict[str, dict[str, list[Any]]]) -> None:
            self.layout = layout

    writer = Pages()
    TensorBoardSink(writer, prefix="val/").write(STEP, REPORTS["frozen-eval"])
    assert writer.layout["figure 6: within-class variation"]["NC1"][1] == ["val/nc1_pinv/fc"]


def test_a_prefix_is_made_of_what_trackers_accept() -> None:
    tracker = Mlflow()
    LoggerSink(tracker, prefix="/../my run#1//").write(STEP, REPORTS["live"])
    assert list(tracker.curves) == ["my_run_1/nc1_pinv/fc"]
    assert REPORTS["live"].scalars("{phase}/") == {"live/nc1_pinv/fc": 1.0}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("a/./b/../", "a/b/"), ("../{phase}/", "live/"), ("/a b/x.", "a_b/x."), ("..", "..")],
)
def test_a_prefix_names_no_folder_outside(prefix: str, expected: str) -> None:
    assert tags.beginning(prefix, "live") == expected
