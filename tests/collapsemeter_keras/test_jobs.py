"""The demo and the example on this backend, as a person runs them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import keras
import pytest

from collapsemeter import Criteria
from collapsemeter.cli import demo
from collapsemeter.cli.demo import agreement

EXAMPLE = Path(__file__).parents[2] / "examples" / "keras_fit.py"
SHORT, LONG = 2, 25  # NC1 and NC4 are there well before the demo's sixty, NC2 is not
COMPILED = keras.backend.backend() != "torch"  # there XLA compiles the demo for as long as it runs


@pytest.mark.parametrize(
    "epochs",
    [
        pytest.param(SHORT, marks=pytest.mark.nightly) if COMPILED else SHORT,
        pytest.param(LONG, marks=pytest.mark.nightly),
    ],
)
def test_the_demo_runs_and_collapses_in_time(epochs, tmp_path):
    outcome = demo.run("keras", epochs, str(tmp_path / "demo"))
    final = outcome.history[-1]
    verdict = demo.outcome_words(outcome)
    assert verdict.startswith(f"{demo.HEADLINES[outcome.band]} after {epochs} epochs; ")
    assert outcome.fall > 1.5
    if epochs == LONG:
        judged = Criteria().judge(final.frozen.final)
        assert {judged[name].band for name in ("NC1", "NC4")} <= {"collapsed", "nearly collapsed"}
        assert "; zero training error from" in verdict
    assert list(final.frozen) == ["conv1", "conv2", "conv3", "hidden", "fc"]
    assert final.live.provenance["rows"] == final.frozen.provenance["rows"] == 1797
    assert not final.live.warnings
    assert not final.frozen.warnings
    assert_audited(outcome)
    lines = (outcome.folder / "frozen" / "reports.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(epochs + 1))


def assert_audited(outcome: demo.Outcome) -> None:
    """The audit of what was written is what was observed, as near as float32 sums are."""
    observed = outcome.history[-1].frozen
    assert list(outcome.audited) == list(observed)
    assert outcome.audited.phase == "frozen-train"
    for name, layer in observed.items():
        for metric, value in layer.items():
            found = outcome.audited[name][metric]
            assert found == pytest.approx(value, rel=1e-4, nan_ok=True), (name, metric)
    assert outcome.audited.final["nc4_mismatch"] == observed.final["nc4_mismatch"]
    assert "agrees" in agreement(observed, outcome.audited)
    assert (outcome.folder / "report.html").stat().st_size > 10_000


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")  # a process of its own would load Keras again
    assert "validation, nc1_pinv:" in capsys.readouterr().out
    lines = (tmp_path / "runs/keras/reports.train.jsonl").read_text().splitlines()
    assert len(lines) == 5
