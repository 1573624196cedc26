"""The commands show and compare: reports in files as text, JSON and HTML."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.cli import main
from collapsemeter.sinks.json_lines import JsonlSink


def measured(seed: int, noise: float) -> CollapseReport:
    rng = np.random.default_rng(seed)
    layers = {}
    for i, name in enumerate(("conv1", "conv2", "fc")):
        means = rng.standard_normal((4, 6))
        labels = np.arange(48) % 4
        features = means[labels] + noise * 0.5**i * rng.standard_normal((48, 6))
        moments = cm.ClassMoments.from_batch(features, labels, 4)
        layers[name] = cm.measure(moments, head=cm.Head(means) if name == "fc" else None)
    return CollapseReport(layers, phase="frozen-train", warnings=("mind the step",))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(measured(0, 0.3).to_json(matrices=True))
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.json"
    path.write_text(measured(1, 0.1).to_json(matrices=True))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path)
    for epoch in range(3):
        sink.write(epoch, measured(0, 0.5**epoch))
    return path


def test_a_report_is_shown_in_80_columns(saved: Path, capsys) -> None:
    assert main(["show", str(saved)]) == 0
    out = capsys.readouterr().out
    report = CollapseReport.load(saved)
    assert report.table() in out
    assert " ".join(out.split()).startswith(f"48 rows of 4 classes {report.summary()}")
    assert "! mind the step" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_what_measuring_took_is_shown_where_it_is_known(tmp_path: Path, capsys) -> None:
    path = tmp_path / "live.json"
    for overhead, line in ((0.0312, "measuring took 3.1% of the training's time"), (None, None)):
        path.write_text(replace(measured(0, 0.3), provenance={"overhead": overhead}).to_json())
        assert main(["show", str(path)]) == 0
        out = capsys.readouterr().out
        assert (line in out.splitlines()) if line else ("measuring took" not in out)


def test_a_wide_terminal_is_used_and_a_narrow_one_respected(
    saved: Path, capsys, monkeypatch
) -> None:
    for columns in (60, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["show", str(saved), "--metrics", *cm.METRICS]) == 0
        out = capsys.readouterr().out
        assert columns - 30 < max(map(len, out.splitlines())) <= columns


def test_no_colour_is_written_to_a_terminal_either(saved: Path) -> None:
    command = Path(sys.executable).with_name("collapsemeter")
    done = subprocess.run(
        [command, "show", saved],
        capture_output=True,
        check=True,
        env={"NO_COLOR": "1", "TERM": "xterm-256color", "PATH": "/usr/bin:/bin"},
    )
    assert b"\x1b" not in done.stdout


def test_json_is_the_report_and_nothing_else(saved: Path, capsys) -> None:
    assert main(["show", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == CollapseReport.load(saved).to_dict()


def test_quiet_is_one_line(saved: Path, capsys) -> None:
    assert main(["show", str(saved), "--quiet"]) == 0
    summary = CollapseReport.load(saved).summary()
    assert capsys.readouterr().out == f"48 rows of 4 classes; {summary}\n"


def test_the_last_report_of_a_history_is_shown(run: Path, capsys) -> None:
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert "epoch 2, the last of 3 reports" in out
    assert f"{measured(0, 0.25).final['nc1_pinv']:.3g}" in out


def test_metrics_are_chosen_and_mistakes_named(saved: Path, capsys) -> None:
    assert main(["show", str(saved), "--metrics", "nc1_cdnv"]) == 0
    assert "nc1_cdnv" in capsys.readouterr().out
    assert main(["show", str(saved), "--metrics", "nc9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "collapsemeter: no metric is named 'nc9'; there are nc1_pinv, nc1_trace"
    )
    assert main(["compare", str(saved), str(saved), "--metrics", "nc9"]) == 2
    assert "no metric is named 'nc9'" in capsys.readouterr().err


def test_phases_are_never_mixed(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path)
    for phase, value in (("live", 0.5), ("frozen-train", 0.25)):
        sink.write(0, CollapseReport({"fc": LayerReport({"nc1_trace_ratio": value})}, phase))
    assert main(["show", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"collapsemeter: {path} holds reports of the phases frozen-train, live, which are different "
        "quantities: choose one with --phase frozen-train\n"
    )
    assert main(["show", str(path), "--quiet", "--phase", "live"]) == 0
    assert (
        "(live): NC1 partly collapsed: 33 % of the variance is within classes"
        in capsys.readouterr().out
    )
    assert main(["show", str(path), "--phase", "dead"]) == 2
    assert capsys.readouterr().err == (
        f"collapsemeter: {path} holds no report of phase 'dead', but of frozen-train, live\n"
    )


@pytest.mark.parametrize("command", ["show", "compare"])
def test_what_does_not_read_is_one_sentence_and_status_2(tmp_path: Path, capsys, command) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"format": "collapsemeter.Comparison"}')
    missing = tmp_path / "missing.json"
    for file in (path, missing):
        assert main([command, *[str(file)] * (2 if command == "compare" else 1)]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert error.startswith("collapsemeter: ")
        assert str(file) in error


def test_two_reports_are_compared(saved: Path, other: Path, capsys) -> None:
    comparison = cm.compare(CollapseReport.load(saved), CollapseReport.load(other))
    assert np.isfinite(comparison["fc"].gram_distance)
    assert main(["compare", str(saved), str(other)]) == 0
    out = capsys.readouterr().out
    assert out == comparison.table() + "\n"
    assert max(map(len, out.splitlines())) <= 80
    assert main(["compare", str(saved), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == comparison.to_dict()
    assert main(["compare", str(saved), str(other), "--quiet"]) == 0
    assert capsys.readouterr().out == comparison.summary() + "\n"
    assert main(["compare", str(saved), str(other), "--metrics", "nc1_cdnv"]) == 0
    assert capsys.readouterr().out == comparison.table(["nc1_cdnv"]) + "\n"


def test_a_report_without_layers_is_not_compared(tmp_path: Path, saved: Path, capsys) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(CollapseReport({}).to_json())
    assert main(["compare", str(empty), str(saved)]) == 2
    assert "the report has no layer: measure at least one" in capsys.readouterr().err
    assert main(["compare", str(saved), str(empty)]) == 2
    assert "the reference has no layer: measure at least one" in capsys.readouterr().err


def test_json_and_quiet_exclude_each_other(saved: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["show", str(saved), "--json", "--quiet"])
    assert stop.value.code == 2
    assert "not allowed with argument --json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "compare"])
def test_help_has_examples(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"collapsemeter {command} " in out.split("examples:")[1]
    assert max(map(len, out.splitlines())) <= 80


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    path = tmp_path / "long.jsonl"
    sink = JsonlSink(path)
    for epoch in range(8):
        report = measured(epoch, 0.5 * 0.7**epoch)
        sink.write(epoch, report.with_training_error(0.0 if epoch > 2 else 0.25))
    return path


def test_depth_and_the_terminal_phase_are_in_words(long_run: Path, capsys) -> None:
    assert main(["show", str(long_run), "--metrics", "nc1_pinv", "nc4_mismatch", "nc3_cosine"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "collapse depth 1 of 3: conv1 is the first layer within 5 percentage points" in text
    assert "effective depth: not known: the last layer, fc, has no ncc_accuracy" in text
    assert "law of data separation: log nc1_fuzziness changes by" in text
    assert (
        "log-slope per epoch at fc, over epoch 3 on (epoch 3 is the first at zero training error; "
        "epoch 2, the last known one before it, had 25 %): nc1_pinv: -"
    ) in text
    assert "5 reports" in text
    assert "nc3_cosine: " not in text  # it may be negative


def test_few_reports_have_no_slope_and_no_error_is_guessed(run: Path, capsys) -> None:
    assert main(["show", str(run)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "over all epochs (no training error is recorded: write report.with_training_error" in text
    )
    assert "it needs 4 reports with a positive value, there are 3" in text


def test_json_of_a_history_has_its_trends(long_run: Path, capsys) -> None:
    assert main(["show", str(long_run), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["terminal_phase"]["step"] == 3
    trend = record["trends"]["conv2"]["nc1_trace_ratio"]
    assert trend["low"] < trend["slope"] < trend["high"] < 0
    assert trend["points"] == 5
    assert CollapseReport.from_dict(record).final["nc1_pinv"] > 0
