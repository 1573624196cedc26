"""Choosing a sink, and several as one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collapsemeter import CollapseReport
from collapsemeter.sinks import CsvSink, Fan, JsonlSink, LoggerSink, TensorBoardSink, to


class Theirs:
    """A sink of somebody else's."""

    def __init__(self, error: Exception | None = None) -> None:
        self.steps: list[int] = []
        self.error = error

    def write(self, step: int, report: CollapseReport) -> None:
        if self.error is not None:
            raise self.error
        self.steps.append(step)


class Tracker:
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...


class Writer:
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...


def test_to_picks_by_path_and_by_what_an_object_can_do(tmp_path: Path) -> None:
    assert type(to(tmp_path / "a.jsonl")) is JsonlSink
    assert type(to(str(tmp_path / "a.JSONL"))) is JsonlSink
    assert type(to(tmp_path / "a.csv")) is CsvSink
    folder = to(tmp_path / "runs" / "lr0.1")
    assert type(folder) is TensorBoardSink
    folder.close()
    assert type(to(Writer())) is TensorBoardSink
    assert type(to(Tracker())) is LoggerSink
    assert type(to(lambda step, report: None)) is LoggerSink


def test_to_returns_a_sink_as_it_is(tmp_path: Path) -> None:
    for sink in (JsonlSink(tmp_path / "a.jsonl"), Theirs(), Fan()):
        assert to(sink) is sink


@pytest.mark.parametrize("name", ["run.json", "notes.txt", "figure.png", "taken"])
def test_a_path_no_sink_writes_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(
        ValueError,
        match=rf"no sink writes .*{name}: expected a path ending in .jsonl or .csv, or a folder",
    ):
        to(tmp_path / name)


def test_an_open_file_is_no_sink(tmp_path: Path) -> None:
    with (
        (tmp_path / "a").open("w") as file,
        pytest.raises(TypeError, match="TextIOWrapper cannot be written to"),
    ):
        to(file)


def test_one_failing_destination_does_not_stop_the_others(
    tmp_path: Path, report: CollapseReport, recwarn: pytest.WarningsRecorder
) -> None:
    def broken(step: int, report: CollapseReport) -> None:
        raise RuntimeError("gone")

    theirs = Theirs()
    with Fan(
        broken, JsonlSink("/dev/full"), Theirs(OSError("away")), tmp_path / "a.jsonl", theirs
    ) as fan:
        for step in (1, 2):
            fan.write(step, report)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert theirs.steps == [1, 2]
    assert fan.failures == 6
    names = [str(w.message).split(" could not write step 1: ")[0] for w in recwarn.list]
    assert names == ["LoggerSink(broken)", "JsonlSink(/dev/full)", "LoggerSink(Theirs.write)"]


def test_fans_nest_and_close_what_they_opened(tmp_path: Path, report: CollapseReport) -> None:
    inner = Fan(tmp_path / "events")
    with Fan(inner, tmp_path / "a.csv") as fan:
        fan.write(1, report)
    with pytest.warns(RuntimeWarning, match="TensorBoardSink.* could not write step 2: ValueError"):
        fan.write(2, report)
    assert (fan.failures, inner.failures) == (1, 1)


def test_a_destination_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="int cannot be written to"):
        Fan(tmp_path / "a.jsonl", 3)


def test_importing_the_sinks_loads_no_writer_and_no_framework() -> None:
    heavy = "{'tensorboardX', 'tensorboard', 'torch', 'matplotlib', 'google.protobuf'}"
    script = f"import sys, collapsemeter.sinks; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_import_check_can_fail() -> None:
    script = "import sys, tensorboardX; print('tensorboardX' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_every_public_name_is_there() -> None:
    import collapsemeter.sinks as sinks

    missing: list[Any] = [name for name in sinks.__all__ if not hasattr(sinks, name)]
    assert missing == []
