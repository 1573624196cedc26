"""JSON lines and CSV, read back by strict readers."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collapsemeter import METRICS, CollapseReport, LayerReport
from collapsemeter.metrics.layer import to_json_value
from collapsemeter.sinks import CsvSink, Fan, JsonlSink, TensorBoardSink
from collapsemeter.sinks.csv_table import _COLUMNS
from collapsemeter.system.escaping import printable


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
            # Equal, not close: float64.
            assert line["layers"][name]["metrics"] == to_json_value(dict(layer))
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


@pytest.mark.parametrize("step", [None, float("nan"), float("inf"), "3", 1.5])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "events"])
def test_a_step_that_is_no_count_is_said_in_words(
    tmp_path: Path, report: CollapseReport, step: Any, name: str
) -> None:
    sink = Fan(tmp_path / name)
    with pytest.warns(RuntimeWarning, match=rf"ValueError: {step} is not a whole number: pass a"):
        sink.write(step, report)
    sink.close()


def test_what_is_no_report_is_said_in_words(tmp_path: Path, report: CollapseReport) -> None:
    for name, other in (("LayerReport", report["fc"]), ("NoneType", None), ("int", 3)):
        sink = JsonlSink(tmp_path / f"{name}.jsonl")
        with pytest.warns(RuntimeWarning, match=f"{name} is no report: pass write"):
            sink.write(1, other)  # type: ignore[arg-type]


def test_a_table_that_a_spreadsheet_has_saved_is_continued(
    tmp_path: Path, report: CollapseReport
) -> None:
    path = tmp_path / "runs.csv"
    CsvSink(path, run="a").write(1, report)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    CsvSink(path, run="a").write(2, report)
    rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))
    assert [row["step"] for row in rows[:: len(report)]] == ["1", "2"]


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
    actual = rows(path)
    first, last = list(actual[0])[: 4 + len(METRICS)], list(actual[0])[4 + len(METRICS) :]
    assert first == ["run", "step", "phase", "layer", *METRICS]
    assert last[-1] == "flags"
    assert {name.partition(".")[2] for name in last[:-1]} == {"low", "high", "estimate"}
    assert [(row["step"], row["layer"]) for row in actual] == [
        ("1", "conv1"),
        ("1", "fc"),
        ("5", "conv1"),
        ("5", "fc"),
    ]
    for row in actual:
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
    # A row is one line, and a lone surrogate has no UTF-8: the table spells them out.
    expected = [printable(name) for name in odd_report]
    assert expected[3:5] == [r"two\nlines", "😀"]
    assert [row["layer"] for row in rows(tmp_path / "run.csv")] == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.csv", "run.jsonl"]


def of(value: float, name: str = "fc", phase: str = "frozen-eval") -> CollapseReport:
    return CollapseReport({name: LayerReport({"nc1_pinv": value})}, phase)


LIMITED = """
import resource, signal, sys, warnings
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.sinks import Fan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, *paths = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
sink = Fan(*paths, run="a")
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    for step in range(20):
        sink.write(step, CollapseReport({"fc": LayerReport({"nc1_pinv": 1 / (step + 1)})}))
print(sink.failures)
"""


@pytest.mark.parametrize("limit", [20, 100, 700, 1500])
def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path: Path, limit: int) -> None:
    """A limit of the file size is a full disk: the last write of each file is cut within a line."""
    paths = tmp_path / "run.jsonl", tmp_path / "run.csv"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    steps = [line["step"] for line in json_lines(paths[0])]
    table = rows(paths[1])
    for written in (steps, [int(row["step"]) for row in table]):
        assert written == sorted(
            set(written)
        )  # a shorter line may still fit behind one that did not
    assert int(done.stdout) == 40 - len(steps) - len(table) > 0
    for path in paths:
        assert not path.read_bytes() or path.read_bytes().endswith(b"\n")
    again = Fan(*paths, run="a")  # there is room again
    again.write(99, of(0.125))
    assert again.failures == 0
    assert json_lines(paths[0])[-1]["step"] == 99
    assert [row["nc1_pinv"] for row in rows(paths[1])][-1] == "0.125"
    for row in rows(paths[1]):
        assert float(row["nc1_pinv"]) == (
            1 / (int(row["step"]) + 1) if row["step"] != "99" else 0.125
        )


def header() -> str:
    return ",".join(_COLUMNS)


@pytest.mark.parametrize("left", [1, 12, 60, "all"])
def test_a_header_that_was_cut_is_written_whole(tmp_path: Path, left: int | str) -> None:
    path = tmp_path / "run.csv"
    path.write_text(header() if left == "all" else header()[: int(left)])
    sink = CsvSink(path)
    sink.write(1, of(0.166))
    assert list(rows(path)[0]) == header().split(",")
    assert [row["nc1_pinv"] for row in rows(path)] == ["0.166"]
    assert sink.failures == 0


def test_every_cut_of_a_row_leaves_no_wrong_number(tmp_path: Path, report: CollapseReport) -> None:
    path, source = tmp_path / "run.csv", tmp_path / "whole.csv"
    CsvSink(source, run="a, b").write(1, report)
    (first, second), whole = rows(source), source.read_text()
    start = whole.rindex("\n", 0, -1) + 1
    for end in range(start + 1, len(whole)):
        path.write_text(whole[:end])
        CsvSink(path, run="c").write(2, of(0.5))
        remaining, *cut, last = rows(path)
        assert remaining == first
        assert (last["run"], last["step"], last["nc1_pinv"]) == ("c", "2", "0.5")
        for row in cut:
            assert all(row[key] in ("", second[key]) for key in row if key != "flags")
    assert cut == [second]  # nothing was missing but the end of the line


@pytest.mark.parametrize(
    "old",
    [
        "step,phase,layer,nc1_pinv,flags\n0,live,fc,0.5,\n",  # before runs were named
        header().replace("nc1_cdnv,", "") + "\n",  # another set of metrics
        header()[:30] + "\n",  # cut, and continued by an earlier version
    ],
)
def test_a_table_of_another_version_is_left_and_one_beside_it_begun(
    tmp_path: Path, old: str
) -> None:
    path, beside = tmp_path / "run.csv", tmp_path / "run-2.csv"
    path.write_text(old)
    for step in (1, 2):
        with pytest.warns(RuntimeWarning, match=r"run.csv has the columns of another version: the rows go to run-2.csv"):  # fmt: skip
            sink = CsvSink(path)
        sink.write(step, of(0.5))
        assert sink.failures == 0
    assert path.read_text() == old
    assert [row["step"] for row in rows(beside)] == ["1", "2"]


def test_columns_that_change_below_a_sink_get_no_row(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    sink = CsvSink(path)
    path.write_text("step,phase,layer,nc1_cdnv,flags\n")
    with pytest.warns(RuntimeWarning, match="has got other columns meanwhile"):
        sink.write(1, of(0.5))
    assert path.read_text() == "step,phase,layer,nc1_cdnv,flags\n"


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\uff1d1", "\t=1", "\r=1"]
)
def test_no_cell_of_the_table_is_a_formula(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.csv"
    layer = LayerReport({"nc1_pinv": -0.5}, flags=(name,))
    CsvSink(path, run=name).write(-1, CollapseReport({name: layer}, name))
    (row,) = rows(path)
    for key in ("run", "phase", "layer", "flags"):
        assert row[key][0] in "'\\"
        assert row[key].lstrip("'") == printable(name)
    assert (row["step"], row["nc1_pinv"]) == ("-1", "-0.5")  # numbers stay numbers


def test_a_run_is_named_in_every_record_and_resumed_by_name(tmp_path: Path) -> None:
    paths = tmp_path / "run.jsonl", tmp_path / "run.csv"
    for run, steps in (("a", (0, 1)), (None, (0, 1)), ("a", (1, 2))):
        fan = Fan(*paths, run=run)
        for step in steps:
            fan.write(step, of(0.5))
        named = [line["run"] for line in json_lines(paths[0])]
        assert [row["run"] for row in rows(paths[1])] == named
        assert named[-2:] == [fan.run, fan.run]
    assert (named[0], named[1], named[4], named[5]) == ("a",) * 4
    assert named[2] != "a"
    assert Fan().run != Fan().run


@pytest.mark.parametrize(
    ("run", "kind", "words"), [("", ValueError, "run=''"), (" ", ValueError, "run=' '"), (3, TypeError, "run=3")]
)  # fmt: skip
@pytest.mark.parametrize("sink", [Fan, JsonlSink, CsvSink, TensorBoardSink])
def test_a_run_without_a_name_is_refused(tmp_path: Path, run: Any, kind: Any, words: str, sink: Any) -> None:  # fmt: skip
    with pytest.raises(kind, match=f"{words}: name the run"):
        sink(tmp_path / "run.csv", run=run)
    assert list(tmp_path.iterdir()) == []


WRITING = """
import sys
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.sinks import CsvSink
layers = {f"layer{i}": LayerReport({"nc1_pinv": i + 0.5, "nc1_cdnv": 1 / 3}) for i in range(200)}
sink = CsvSink(sys.argv[1], run=sys.argv[2])
for step in range(60):
    sink.write(step, CollapseReport(layers))
sys.exit(sink.failures)
"""


def test_processes_that_write_one_table_take_no_row_from_each_other(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(path), run]) for run in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 60 * 200
    assert all(float(row["nc1_pinv"]) == int(row["layer"][5:]) + 0.5 for row in rows)
