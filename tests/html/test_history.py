"""Histories of several runs: what is kept, in which order, and that no line joins two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from collapsemeter import ClassMoments, CollapseReport, LayerReport, measure
from collapsemeter.cli import main
from collapsemeter.html import render
from collapsemeter.report.figure import PALE, PANELS, plot
from collapsemeter.report.history import History, read_history, run_of
from collapsemeter.sinks import Fan


def of(value: float, run: str = "", phase: str = "live", name: str = "fc") -> CollapseReport:
    metrics = ("nc1_pinv", "nc1_trace_ratio", "nc2_equinorm")
    layer = LayerReport(dict.fromkeys(metrics, value))
    return CollapseReport({name: layer}, phase, provenance={"run": run} if run else {})


def values(history: Any) -> list[tuple[str, int, float]]:
    return [(run_of(report), step, report["fc"]["nc1_pinv"]) for step, report in history]


def write(
    path: Path, run: str | None, points: list[tuple[int, float]], phase: str = "live"
) -> None:
    with Fan(path, run=run) as fan:
        for step, value in points:
            fan.write(step, of(value, phase=phase))


def without_runs(path: Path) -> None:
    """Make the file one that was written before runs had names."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        del record["run"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Run a of ten epochs, then run b of three; a is resumed meanwhile, from epoch 8."""
    path = tmp_path / "run.jsonl"
    write(path, "a", [(step, 2.0**-step) for step in range(10)])
    write(path, "a", [(8, 0.75), (9, 0.625)])
    write(path, "b", [(0, 64.0), (1, 32.0), (2, 16.0)])
    return path


def test_runs_stand_apart_and_the_last_record_of_a_step_wins(two: Path) -> None:
    history = read_history(two)
    assert list(history.runs) == ["a", "b"]
    assert [step for step, _ in history.runs["a"]] == list(range(10))
    assert values(history)[8:] == [
        ("a", 8, 0.75), ("a", 9, 0.625), ("b", 0, 64.0), ("b", 1, 32.0), ("b", 2, 16.0),
    ]  # fmt: skip
    assert history.notes == (
        "2 reports of run 'a' were written again: the last one of each step is kept",
    )


def test_the_run_that_wrote_last_stands_last(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for run, step in (("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)):  # two at one time
        write(path, run, [(step, 0.5)])
    assert [(run, step) for run, step, _ in values(read_history(path))] == [
        ("b", 0), ("b", 1), ("a", 0), ("a", 1), ("a", 2),
    ]  # fmt: skip


def test_what_a_resumed_run_left_behind_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, "a", [(0, 1.0), (1, 0.5), (2, 0.25)])
    write(path, "a", [(1, 0.75)])
    assert read_history(path).notes == (
        "1 report of run 'a' was written again: the last one of each step is kept; what follows step 1 "
        "was written before it",
    )


def test_phases_of_one_step_are_no_two_records_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for step in range(3):
        write(path, "a", [(step, 1.0)], "live")
        write(path, "a", [(step, 0.5)], "frozen-train")
    history = read_history(path)
    assert (len(history), history.notes) == (6, ())
    assert [value for _, _, value in values(history.of_phase("live"))] == [1.0] * 3


def test_in_a_file_without_runs_a_step_that_goes_back_starts_another(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, "a", [(5, 1.0), (6, 0.5)])
    write(path, "b", [(0, 8.0), (1, 4.0)])
    write(path, "b", [(1, 3.0)])
    without_runs(path)
    history = read_history(path)
    assert values(history) == [
        ("unnamed 1", 5, 1.0), ("unnamed 1", 6, 0.5), ("unnamed 2", 0, 8.0), ("unnamed 2", 1, 3.0),
    ]  # fmt: skip
    assert history.notes == ("1 report of run 'unnamed 2' was written again: the last one of each step is kept",)  # fmt: skip
    write(path, "c", [(0, 2.0)])  # and a run with a name goes on below
    assert list(read_history(path).runs) == ["unnamed 1", "unnamed 2", "c"]


def test_interleaved_phases_of_a_file_without_runs_are_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for step in range(3):
        write(path, "a", [(step, 1.0)], "live")
        write(path, "a", [(step, 0.5)], "frozen-train")
    without_runs(path)
    assert {run_of(report) for _, report in read_history(path)} == {""}


def test_reports_in_memory_are_one_run_unless_their_steps_repeat() -> None:
    shuffled = [(2, of(0.25)), (0, of(1.0)), (1, of(0.5))]
    assert [step for step, _ in History(shuffled)] == [0, 1, 2]
    assert History(shuffled).notes == ()
    twice = [(0, of(1.0)), (1, of(0.5)), (2, of(0.25)), (0, of(8.0)), (1, of(4.0))]
    assert [(run, len(of)) for run, of in History(twice).runs.items()] == [
        ("unnamed 1", 3),
        ("unnamed 2", 2),
    ]
    assert History(History(twice)) == History(twice)


def test_lines_that_do_not_read_are_left_out_and_counted(two: Path) -> None:
    lines = two.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:50] + b"\n"
    lines[4] = b"\0" * 512 + b"\n"  # what a crash of the machine leaves
    lines[6] = b"\xff\xfe\n"
    lines[7] = lines[7].replace(b"nc1_pinv", b"nc9")
    two.write_bytes(b"".join(lines) + b'{"run": "b", "st')
    history = read_history(two)
    assert [step for step, _ in history.runs["a"]] == [0, 1, 3, 5, 8, 9]
    assert history.notes[0].startswith(f"5 of 16 lines were left out: {two}, line 3 is not JSON (")


def test_no_line_of_the_figure_joins_two_runs(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    plot(read_history(two), tmp_path / "a.svg")
    ((figure),) = figures
    axes = figure.axes[[panel.metric for panel in PANELS].index("nc1_pinv")]
    lines = [(list(line.get_xdata()), line.get_alpha()) for line in axes.lines]
    assert lines == [(list(range(10)), PALE), ([0, 1, 2], None)]
    assert "an earlier run" in [t.get_text() for key in figure.legends for t in key.get_texts()]


@pytest.mark.usefixtures("undrawn")
def test_show_its_figure_and_its_page_are_about_one_report(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["show", str(two), "--html", str(page)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "epoch 2, the last of 3 reports" in out
    assert "1 earlier run, which no line joins: 'a' (epochs 0 to 9)" in out
    assert " 16 " in out
    assert "! 2 reports of run 'a' were written again" in out
    text = page.read_text(encoding="utf-8")
    assert text == render(read_history(two))
    assert "fell 4.0 times since epoch 0, from 64" in text  # the trend is that of the last run
    assert "Epochs 0 to 2, 3 reports." in text
    assert "&#39;a&#39; (epochs 0 to 9)" in text
    assert "2 reports of run &#39;a&#39; were written again" in text
    data = json.loads(text.split('id="report">')[1].split("</script>")[0])
    assert [entry["run"] for entry in data["history"]] == ["a"] * 10 + ["b"] * 3


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_what_a_history_lacks_is_said_beside_other_output(
    two: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(two), option]) == 0
    out, error = capsys.readouterr()
    assert error == (
        "collapsemeter: 2 reports of run 'a' were written again: the last one of each step is kept\n"
    )
    assert error not in out
    assert main(["compare", str(two), str(two), option]) == 0
    assert capsys.readouterr().err == error


@pytest.mark.usefixtures("undrawn")
def test_a_history_of_training_begins_with_its_rows_and_classes(tmp_path, capsys):
    rows, labels = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 4
    layer = measure(ClassMoments.from_batch(rows, labels, 4))
    with Fan(tmp_path / "h.jsonl") as sink:
        sink.write(0, CollapseReport({"fc": layer}))
    main(["show", str(tmp_path / "h.jsonl"), "--html", str(tmp_path / "h.html")])
    assert capsys.readouterr().out.startswith("40 rows of 4 classes\n")
    assert '<p class="begin">40 rows of 4 classes</p>' in (tmp_path / "h.html").read_text()


def test_slopes_and_the_terminal_phase_are_on_the_page() -> None:
    entries = []
    for step in range(8):
        layer = LayerReport(
            {"nc1_pinv": 0.5**step * (1.1 if step % 2 else 1.0), "nc4_mismatch": 0.0}
        )
        report = CollapseReport({"fc": layer})
        entries.append((step, report.with_training_error(0.0 if step > 2 else 0.5)))
    page = render(entries)
    slope = History(entries).trends()["fc"]["nc1_pinv"].slope
    assert f"<td>{slope:.3g}</td>" in page
    assert "over epoch 3 on (epoch 3 is the first at zero training error" in page
    assert "it needs 4 reports with a positive value, there are 0" in page
    record = json.loads(page.split('id="report">')[1].split("</script>")[0])
    assert record["trends"]["fc"]["nc1_pinv"]["slope"] == slope
    assert record["terminal_phase"]["step"] == 3
    assert "How fast each metric falls" not in render(entries[:1])


def test_depth_in_words_is_on_the_page() -> None:
    ratios = {"conv1": 9.0, "conv2": 0.03, "fc": 0.01}
    layers = {name: LayerReport({"nc1_trace_ratio": ratio}) for name, ratio in ratios.items()}
    page = render([(0, CollapseReport(layers))])
    assert "collapse depth 2 of 3: conv2 is the first layer within 5 percentage points" in page
    assert "not fitted: fewer than three layers have a positive nc1_fuzziness" in page
