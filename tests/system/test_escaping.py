"""One function escapes: no output moves a cursor, turns text around or fails for want of an encoding."""

from __future__ import annotations

import io
import json
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.adapter.selection import Selection
from collapsemeter.cli import main
from collapsemeter.cli.fail_if import FailureCondition
from collapsemeter.report.history import read_history
from collapsemeter.sinks.csv_table import CsvSink
from collapsemeter.sinks.json_lines import JsonlSink
from collapsemeter.sinks.loggers import LoggerSink
from collapsemeter.system.escaping import printable, printable_lines
from collapsemeter.system.terminal import say
from collapsemeter.system.warning import warn

from ..hostile_names import HOSTILE, unsafe

ANY = st.text(st.characters(exclude_categories=[]))


@given(ANY)
def test_what_is_escaped_prints_and_still_tells_names_apart(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    shown.encode()
    if "\\" not in text:
        back = shown.encode("latin-1", "backslashreplace").decode("unicode_escape")
        assert back == text


def report(name: str) -> CollapseReport:
    layer = LayerReport({"nc1_pinv": 0.5, "nc2_etf_error": float("nan")}, {"nc2_etf_error": "one_class"}, flags=(name,))  # fmt: skip
    return CollapseReport({"first": layer, name: layer}, name, {name: name}, warnings=(name,))


@pytest.fixture(params=HOSTILE)
def name(request: pytest.FixtureRequest) -> str:
    actual: str = HOSTILE[request.param]
    return actual


def test_text_of_reports_and_comparisons(name: str) -> None:
    measured = report(name)
    comparison = cm.compare(measured, measured)
    for text in (
        measured.summary(), measured.table(), repr(measured), comparison.summary(), comparison.table(),
        comparison.table(["nc1_pinv"]), Selection((), name, 3, {name: name}).describe(3),
        *FailureCondition.parse("nc1_pinv>0").failures(measured),
    ):  # fmt: skip
        assert unsafe(text) == []
        assert printable(name)[-4:] in " ".join(text.split())
    assert measured.summary().isprintable()


def test_json_gives_names_back_in_ascii(name: str) -> None:
    text = report(name).to_json()
    assert text.isascii()
    back = CollapseReport.from_dict(json.loads(text))
    assert (list(back), back.phase, back.warnings) == (["first", name], name, (name,))


def test_what_is_said_and_warned_about(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(name)
    warn(name)  # as an error, which this suite makes of warnings
    out, error = capsys.readouterr()
    assert unsafe(out) == unsafe(error) == []
    assert str(caught[0].message) == printable(name)
    assert error == f"RuntimeWarning: {printable(name)}\n"
    assert out == f"{printable_lines(name)}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_pipe_of_any_encoding_is_written(
    name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", pipe)
    say(report(name).table() + " é ─ ± 1")
    pipe.flush()
    text = pipe.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert printable(name).encode(encoding, "backslashreplace").decode(encoding)[:4] in text
    assert "\\u2500" not in text  # the rule of the table stays a rule


COMMANDS = [
    ["show", "FILE"], ["show", "FILE", "--quiet"], ["show", "FILE", "--json"],
    ["show", "RUN"], ["show", "RUN", "--quiet"], ["compare", "FILE", "FILE"],
    ["compare", "FILE", "FILE", "--quiet"], ["compare", "FILE", "FILE", "--json"],
    ["compare", "RUN", "FILE", "--metrics", "nc1_pinv"],
    ["show", "NAME"], ["compare", "FILE", "NAME"], ["show", "FILE", "--phase", "NAME"],
    ["show", "FILE", "--metrics", "NAME"], ["audit", "NAME"], ["audit", "merge", "NAME"],
    ["audit", "FILE", "--fail-if", "NAME"], ["NAME"], ["show", "FILE", "NAME"],
    ["demo", "--framework", "NAME"], ["dufm", "--classes", "NAME"],
    ["dufm", "--classes", "2", "--depth", "1", "--weight-decay", "1", "--sweep", "NAME"],
    ["dufm", "--classes", "2", "--depth", "1", "--weight-decay", "1", "--plot", "NAME"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_and_its_complaints(
    name: str, command: list[str], tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.json").write_text(report(name).to_json())
    (tmp_path / "run.jsonl").write_text("{\n")
    for run in ("a", name):
        JsonlSink("run.jsonl", run=run).write(0, report(name))
    given = {"FILE": "report.json", "RUN": "run.jsonl", "NAME": name}
    try:
        status = main([given.get(word, word) for word in command])
    except SystemExit as stop:
        status = stop.code
    out, error = capsys.readouterr()
    assert status in (0, 2)
    assert unsafe(out) == unsafe(error) == []
    assert out or error
    if status == 2:
        assert error.count("\n") == 1
    if "--json" in command:
        assert out.isascii()
        json.loads(out)


def test_files_of_sinks(name: str, tmp_path) -> None:
    measured, calls = report(name), []

    class Tracker:
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            calls.append(metrics)

    sinks = [
        JsonlSink(tmp_path / "run.jsonl", run=name), CsvSink(tmp_path / "run.csv", run=name),
        LoggerSink(Tracker()),
    ]  # fmt: skip
    for sink in sinks:
        sink.write(1, measured)
        assert sink.failures == 0
    for file in ("run.jsonl", "run.csv"):
        assert unsafe((tmp_path / file).read_text(encoding="utf-8").replace("\x7f", "")) == []
    assert all(line[0] not in "=+-@" for line in (tmp_path / "run.csv").read_text().splitlines())
    ((_, back),) = read_history(tmp_path / "run.jsonl")
    assert (list(back), back.provenance["run"]) == (["first", name], name)
    assert all(tag.isascii() and tag.isprintable() and "=" not in tag for tag in calls[0])
