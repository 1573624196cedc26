"""The commands that write the HTML report."""

from __future__ import annotations

from pathlib import Path

import pytest

from collapsemeter import CollapseReport
from collapsemeter.cli import main
from collapsemeter.html import render
from collapsemeter.report.history import read_history
from collapsemeter.sinks import JsonlSink

from .pages import history, report

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_report_is_written_as_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = tmp_path / "report.json", tmp_path / "report.html"
    path.write_text(report().to_json(matrices=True))
    assert main(["show", str(path), "--html", str(target)]) == 0
    assert f"HTML report: {target}" in capsys.readouterr().out
    assert target.read_text(encoding="utf-8") == render([(0, CollapseReport.load(path))])


def test_a_history_is_written_as_a_page_with_trends(tmp_path: Path) -> None:
    path, target = tmp_path / "run.jsonl", tmp_path / "report.html"
    sink = JsonlSink(path)
    for step, built in history():
        sink.write(step, built)
    assert main(["show", str(path), "--html", str(target), "--quiet"]) == 0
    page = target.read_text(encoding="utf-8")
    assert page == render(read_history(path))
    assert "since epoch 0" in page


def test_a_comparison_is_written_as_a_page(tmp_path: Path) -> None:
    path, target = tmp_path / "report.json", tmp_path / "report.html"
    path.write_text(report().to_json(matrices=True))
    assert main(["compare", str(path), str(path), "--html", str(target), "--quiet"]) == 0
    assert "Beside the reference" in target.read_text(encoding="utf-8")
