"""The main job, run in full: real images, past zero error, files read back."""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from collapsemeter import CollapseReport, Criteria, LayerReport, watch
from collapsemeter.activations.manifest import Manifest
from collapsemeter.cli import demo
from collapsemeter.cli.demo import agreement
from collapsemeter_torch import CollapseMeter


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> demo.Outcome:
    threads = torch.get_num_threads()
    try:
        return demo.run(folder=str(tmp_path_factory.mktemp("runs") / "demo"))
    finally:
        torch.set_num_threads(threads)


def test_the_final_layer_collapses(outcome: demo.Outcome) -> None:
    assert outcome.fall >= 100
    assert outcome.history[-1].frozen.final["nc4_mismatch"] == 0
    assert outcome.zero_error_epoch is not None
    judged = Criteria().judge(outcome.history[-1].frozen.final)
    assert [judged[name].band for name in ("NC1", "NC4")] == ["collapsed", "collapsed"]
    assert outcome.band in ("nearly collapsed", "partly collapsed")  # NC2 is the last to come


def test_every_block_is_watched_and_the_head_reads_the_last(outcome: demo.Outcome) -> None:
    for epoch in outcome.history:
        assert list(epoch.frozen) == ["conv1", "conv2", "conv3", "hidden", "fc"]
        assert not epoch.frozen.warnings
    assert epoch.frozen.phase == "frozen-train"
    assert epoch.live is not None
    assert epoch.live.phase == "live"
    assert epoch.live.provenance["rows"] == 1797


def test_the_verdict_speaks_of_this_run(outcome: demo.Outcome) -> None:
    said = demo.outcome_words(outcome)
    final = outcome.history[-1].frozen.final
    headline = demo.HEADLINES[outcome.band]
    assert said.startswith(f"{headline} after {demo.EPOCHS} epochs; zero training error from")
    assert f"{outcome.fall:.0f} times less than before training" in said
    for judgement in Criteria().judge(final).values():
        assert f"  {judgement}; " in said


def test_a_run_that_is_too_short_is_not_called_collapse(outcome: demo.Outcome) -> None:
    short = outcome._replace(history=outcome.history[:2], zero_error_epoch=None)
    assert "No neural collapse yet after 1 epochs; training error never" in demo.outcome_words(
        short
    )


def test_the_lines_and_the_events_hold_the_reports(outcome: demo.Outcome) -> None:
    text = (outcome.folder / "frozen" / "reports.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(demo.EPOCHS + 1))
    events = EventAccumulator(str(outcome.folder / "frozen" / "events"))
    events.Reload()
    scalars = events.Scalars("nc1_pinv/fc")
    for line, epoch, scalar in zip(lines, outcome.history, scalars, strict=True):
        measured = epoch.frozen["fc"]["nc1_pinv"]
        assert line["layers"]["fc"]["metrics"]["nc1_pinv"] == measured
        assert math.isclose(scalar.value, measured, rel_tol=2**-23)


def test_the_figure_is_drawn(outcome: demo.Outcome) -> None:
    assert (outcome.folder / "collapse.png").read_bytes().startswith(b"\x89PNG")
    assert (outcome.folder / "collapse.svg").read_text().startswith("<?xml")


def test_the_activations_are_audited_and_reported(outcome: demo.Outcome) -> None:
    observed, audited = outcome.history[-1].frozen, outcome.audited
    assert audited is not None
    assert list(audited) == list(observed)
    for name, layer in observed.items():
        for metric, value in layer.items():
            assert audited[name][metric] == pytest.approx(value, rel=1e-6, abs=0, nan_ok=True)
    manifest = Manifest.load(outcome.folder / "activations" / "manifest.json")
    assert (manifest.phase, manifest.step) == ("frozen-train", demo.EPOCHS)
    saved = json.loads((outcome.folder / "report.json").read_text())
    assert saved == json.loads(audited.to_json(matrices=True))
    page = (outcome.folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "Neural collapse on scikit-learn" in page


def test_the_last_line_says_where_the_report_is_and_an_earlier_run_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "demo" / "report.html"
    earlier.parent.mkdir()
    earlier.write_text("of an earlier run")
    demo.run(epochs=1, folder=str(tmp_path / "demo"))
    assert [path.name for path in earlier.parent.iterdir()] == ["report.html"]
    assert earlier.read_text() == "of an earlier run"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Report: {tmp_path / 'demo-2' / 'report.html'}"
    assert lines[-2].startswith(
        "The audit of the files agrees with what was observed: metrics of 'fc' within "
    )
    assert lines[-2].endswith(", NC4 equal")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"nc1_pinv": 2.0, "nc4_mismatch": 0.5}, "agrees with what was observed: metrics of 'fc'"),
        ({"nc1_pinv": 2.0, "nc4_mismatch": 0.4}, "does not agree with .* 0.0e[+]00, NC4 not equal"),
        ({"nc1_pinv": 3.0, "nc4_mismatch": 0.5}, "does not agree with .* 3.3e-01, NC4 equal"),
        ({"nc1_pinv": math.nan, "nc4_mismatch": 0.5}, "does not agree with .* inf, NC4 equal"),
    ],
)
def test_a_disagreement_is_not_called_agreement(metrics: dict[str, float], said: str) -> None:
    observed = CollapseReport({"fc": LayerReport({"nc1_pinv": 2.0, "nc4_mismatch": 0.5})})
    reasons = {name: "unknown" for name, value in metrics.items() if math.isnan(value)}
    found = agreement(observed, CollapseReport({"fc": LayerReport(metrics, reasons)}))
    assert re.search(said, found), found


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["sklearn.datasets"] = None
from collapsemeter.cli import main
sys.exit(main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'collapsemeter[demo]'" in done.stderr


def test_without_torch_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
from collapsemeter.cli import main
sys.exit(main(["demo"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the demo cannot train in torch" in done.stderr
    assert "pip install 'collapsemeter[demo,torch]'" in done.stderr


def test_watch_finds_this_adapter() -> None:
    with watch(torch.nn.Sequential(torch.nn.Linear(4, 3)), verbose=False) as meter:
        assert isinstance(meter, CollapseMeter)


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = Path(__file__).parents[2] / "examples" / "torch_loop.py"
    runpy.run_path(str(example), run_name="__main__")  # a process of its own would load torch again
    lines = (tmp_path / "runs/loop/reports.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert "nc1_pinv" in capsys.readouterr().out
