"""JSON lines and CSV, read back by strict readers."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.sinks import CsvSink, JsonlSink


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_a_line_is_the_report_in_float64(tmp_path: Path, make_report: Any) -> None:
    path = tmp_path / "new" / "run.jsonl"
    sink = JsonlSink(path)
    reports = {step: make_report(step) for step in (1, 5)}
    for step, report in reports.items():
        sink.write(step, report)
    lines = json_lines(path)
    assert [line["step"] for line in lines] == [1, 5]
    for line in lines:
        report = reports[line["step"]]
        assert line["phase"] == report.phase
        assert list(line["layers"]) == list(report)
        for name, layer in report.items():
            assert line["layers"][name]["metrics"] == dict(layer)  # equal, not close: float64
            assert line["layers"][name]["reasons"] == layer.reasons
            assert line["layers"][name]["flags"] == list(layer.flags)


def test_what_is_undefined_is_null_with_its_reason(
    tmp_path: Path, undefined_report: CollapseReport
) -> None:
    JsonlSink(tmp_path / "run.jsonl").write(1, undefined_report)
    layer = json_lines(tmp_path / "run.jsonl")[0]["layers"]["conv1"]
    assert layer["metrics"]["nc1_pinv"] is None
    assert layer["reasons"]["nc1_pinv"] == "one_class"
    assert layer["reasons"]["nc3_cosine"] == "no_head"
    assert "absent_classes" in layer["flags"]


def test_a_value_without_a_reason_says_what_it_was(tmp_path: Path) -> None:
    values = {"nc1_pinv": math.inf, "nc1_vci": math.nan}
    JsonlSink(tmp_path / "run.jsonl").write(1, CollapseReport({"fc": LayerReport(values)}))
    layer = json_lines(tmp_path / "run.jsonl")[0]["layers"]["fc"]
    assert layer["metrics"] == {"nc1_pinv": None, "nc1_vci": None}
    assert layer["reasons"] == {"nc1_pinv": "inf", "nc1_vci": "nan"}


def test_small_values_and_report_warnings_survive(tmp_path: Path) -> None:
    report = CollapseReport(
        {"fc": LayerReport({"nc1_pinv": 1e-46})}, warnings=("rows were missing",)
    )
    JsonlSink(tmp_path / "run.jsonl").write(1, report)
    (line,) = json_lines(tmp_path / "run.jsonl")
    assert line["layers"]["fc"]["metrics"]["nc1_pinv"] == 1e-46
    assert line["warnings"] == ["rows were missing"]


@pytest.mark.parametrize(("kind", "name"), [(JsonlSink, "run.jsonl"), (CsvSink, "run.csv")])
def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, report: CollapseReport, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sink = kind(name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.write(1, report)
    assert (tmp_path / name).stat().st_size > 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_line_cut_short_spoils_no_other(tmp_path: Path, report: CollapseReport) -> None:
    path = tmp_path / "run.jsonl"
    JsonlSink(path).write(1, report)
    with path.open("a") as file:
        file.write('{"step": 2, "pha')
    JsonlSink(path).write(3, report)
    lines = path.read_text().splitlines()
    assert [json.loads(lines[i])["step"] for i in (0, 2)] == [1, 3]
    assert lines[1] == '{"step": 2, "pha'


@pytest.mark.parametrize("kind", [JsonlSink, CsvSink])
def test_a_full_disk_warns_once_and_is_counted(
    report: CollapseReport, kind: Any, recwarn: pytest.WarningsRecorder
) -> None:
    sink = kind("/dev/full")
    for step in (1, 2, 3):
        sink.write(step, report)
    assert sink.failures == 3
    assert [str(w.message) for w in recwarn.list] == [
        f"{kind.__name__}(/dev/full) could not write step 1: OSError: [Errno 28] No space left on "
        "device. Training goes on and the values remain in the report; later failures of this sink "
        "are counted in its `failures`, not shown"
    ]


def test_a_file_that_comes_back_is_written_again(tmp_path: Path, report: CollapseReport) -> None:
    folder = tmp_path / "disk"
    sink = JsonlSink(folder / "run.jsonl")
    os.rename(folder, tmp_path / "away")
    with pytest.warns(RuntimeWarning, match="could not write step 1: FileNotFoundError"):
        sink.write(1, report)
    os.rename(tmp_path / "away", folder)
    sink.write(2, report)
    assert [line["step"] for line in json_lines(folder / "run.jsonl")] == [2]
    assert sink.failures == 1


@pytest.mark.parametrize("kind", [JsonlSink, CsvSink])
def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(OSError, match=rf"cannot append to {tmp_path}: Is a directory"):
        kind(tmp_path)


def test_a_step_that_is_no_number_warns(tmp_path: Path, report: CollapseReport) -> None:
    sink = JsonlSink(tmp_path / "run.jsonl")
    with pytest.warns(RuntimeWarning, match="could not write step None: TypeError"):
        sink.write(None, report)  # type: ignore[arg-type]


def test_warnings_as_errors_do_not_reach_the_loop(
    report: CollapseReport, capsys: pytest.CaptureFixture[str]
) -> None:
    JsonlSink("/dev/full").write(1, report)  # this suite turns warnings into errors
    assert "could not write step 1: OSError" in capsys.readouterr().err


def test_a_table_has_a_row_per_layer_and_a_column_per_metric(
    tmp_path: Path, make_report: Any
) -> None:
    path = tmp_path / "run.csv"
    sink = CsvSink(path)
    reports = {step: make_report(step) for step in (1, 5)}
    for step, report in reports.items():
        sink.write(step, report)
    found = rows(path)
    assert list(found[0]) == ["step", "phase", "layer", *METRICS, "flags"]
    assert [(row["step"], row["layer"]) for row in found] == [
        ("1", "conv1"),
        ("1", "fc"),
        ("5", "conv1"),
        ("5", "fc"),
    ]
    for row in found:
        layer = reports[int(row["step"])][row["layer"]]
        read = {metric: float(row[metric]) for metric in METRICS if row[metric]}
        assert read == {metric: value for metric, value in layer.items() if math.isfinite(value)}


def test_a_gap_is_an_empty_cell(tmp_path: Path, undefined_report: CollapseReport) -> None:
    CsvSink(tmp_path / "run.csv").write(1, undefined_report)
    row = rows(tmp_path / "run.csv")[0]
    assert (row["nc1_pinv"], row["nc3_cosine"], row["flags"]) == ("", "", "absent_classes")


def test_a_table_with_the_same_columns_is_continued(tmp_path: Path, report: CollapseReport) -> None:
    for step in (1, 2):
        CsvSink(tmp_path / "run.csv").write(step, report)
    assert [row["step"] for row in rows(tmp_path / "run.csv")] == ["1", "1", "2", "2"]


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(
        ValueError, match=r"run.csv has other columns than this version writes"
    ) as caught:
        CsvSink(path)
    assert "('epoch,loss'...): move it away or pass another path" in str(caught.value)
    assert path.read_text() == "epoch,loss\n1,0.5\n"


def test_a_metric_without_a_column_is_said(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "run.csv")
    report = CollapseReport({"fc": LayerReport({"nc1_pinv": 0.5, "my_metric": 1.0})})
    with pytest.warns(RuntimeWarning, match="no column for my_metric; the rest is written"):
        sink.write(1, report)
    assert rows(tmp_path / "run.csv")[0]["nc1_pinv"] == "0.5"


def test_odd_names_come_back_as_they_were(tmp_path: Path, odd_report: CollapseReport) -> None:
    JsonlSink(tmp_path / "run.jsonl").write(1, odd_report)
    CsvSink(tmp_path / "run.csv").write(1, odd_report)
    assert list(json_lines(tmp_path / "run.jsonl")[0]["layers"]) == list(odd_report)
    # A lone surrogate has no UTF-8: the table spells it out.
    expected = [name.replace("\ud800", "\\ud800") for name in odd_report]
    assert [row["layer"] for row in rows(tmp_path / "run.csv")] == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.csv", "run.jsonl"]
