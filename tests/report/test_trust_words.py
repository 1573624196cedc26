"""What is said of noise: beside values, before verdicts, below tables, in thresholds and files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.cli.fail_if import FailureCondition
from collapsemeter.report.criteria import Criteria
from collapsemeter.report.history import read_history
from collapsemeter.report.trust_notes import no_part
from collapsemeter.report.trust_words import beside
from collapsemeter.sinks import JsonlSink


def drawn(rows: int, apart: float = 1.0, classes: int = 8, width: int = 32) -> LayerReport:
    """Return a layer of so many rows a class, with unit noise and means so far apart."""
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(classes), rows)
    means = apart * rng.standard_normal((classes, width))
    features = means[labels] + rng.standard_normal((len(labels), width))
    moments = cm.ClassMoments.from_batch(features, labels, classes)
    decisions = cm.decide(moments, features, labels)
    return cm.measure(moments, decisions=decisions)


def reported(layer: LayerReport) -> CollapseReport:
    return CollapseReport({"fc": layer})


def test_noise_is_said_first_with_the_rows_of_a_class() -> None:
    layer = drawn(4, apart=0.0)
    words = reported(layer).summary()
    assert words.startswith(
        "fc (frozen-eval): NC1, NC2, NC3 and NC4 not judged: between-class scatter is not above noise: "
        "4 rows a class; "
    )
    assert "! fc: between-class scatter is not above noise: 4 rows a class" in (
        reported(layer).table()
    )
    counts = np.array([1, 0, 5])
    mixed = LayerReport({}, flags=layer.flags, per_class={"count": counts})
    assert (
        reported(mixed).summary().endswith("1 to 5 rows a class [" + ", ".join(layer.flags) + "]")
    )
    unknown = LayerReport({}, flags=layer.flags)
    assert "not above noise: so few rows of a class" in reported(unknown).summary()


def test_one_row_a_class_is_no_collapse() -> None:
    layer = drawn(1)
    assert layer["nc1_trace_ratio"] == 0
    judged = Criteria().judge(layer)
    assert {judgement.band for judgement in judged.values()} == {"not judged"}
    why = "no class has rows enough to tell how much they vary: 1 row a class"
    assert judged["NC1"].words == why
    assert math.isnan(judged["NC1"].share)  # so that no threshold passes on it
    assert judged["NC2"].words.endswith(f" as random ones, but {why}")


def test_a_share_that_is_surely_worse_without_noise_is_not_judged() -> None:
    layer = LayerReport(
        {"nc1_trace_ratio": 0.009},
        estimates={"nc1_trace_ratio": 0.02},
        intervals={"nc1_trace_ratio": (0.015, 0.03)},
    )
    judgement = Criteria().judge(layer)["NC1"]
    assert judgement.band == "not judged"
    assert judgement.words == (
        "0.89 % of the variance is within classes, but 2 % (1.5 % to 2.9 %) without the noise in class means"
    )
    layer.intervals["nc1_trace_ratio"] = (0.0095, 0.03)  # it may be collapsed
    judgement = Criteria().judge(layer)["NC1"]
    assert judgement.band == "collapsed"
    assert judgement.words.endswith("within classes (est. 2 %, 0.94 % to 2.9 %)")
    layer.intervals.clear()
    assert Criteria().judge(layer)["NC1"].words.endswith("(est. 2 %)")
    layer.estimates["nc1_trace_ratio"] = 0.009
    assert Criteria().judge(layer)["NC1"].words == "0.89 % of the variance is within classes"


@pytest.mark.parametrize("ends", [(-1.0, 2.0), (math.nan, 0.1), (0.1, math.nan)])
def test_intervals_of_a_strange_file_do_no_harm(ends: tuple[float, float]) -> None:
    layer = LayerReport(
        {"nc1_trace_ratio": 0.009},
        estimates={"nc1_trace_ratio": 0.02},
        intervals={"nc1_trace_ratio": ends},
    )
    assert Criteria().judge(layer)["NC1"].words.endswith("within classes (est. 2 %)")


def test_beside_a_value_stands_what_is_known() -> None:
    layer = LayerReport(
        {"nc1_cdnv": 1.0, "nc4_mismatch": 0.1},
        estimates={"nc1_cdnv": 1.16},
        intervals={"nc4_mismatch": (0.05, 0.15)},
    )
    assert beside(layer, "nc1_cdnv") == " (est. 1.16)"
    assert beside(layer, "nc4_mismatch") == " (0.05 to 0.15)"
    assert beside(layer, "nc1_pinv") == ""


def test_flags_are_sentences_below_the_tables_that_they_concern() -> None:
    layers = {f"l{i}": LayerReport({}, flags=("resubstitution",)) for i in range(5)}
    words = " ".join(CollapseReport(layers).table().split())
    assert "! l0, l1, l2 and 2 more: the rows decided on made the class means" in words
    assert "!" not in CollapseReport(layers).table(["nc1_pinv"])


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("nc1_trace_ratio.low>{low}", "has nc1_trace_ratio.low = "),
        ("fc:nc1_trace_ratio.high>{low}", "has nc1_trace_ratio.high = "),
        ("f*:nc1_trace_ratio.estimate > {low}", "has nc1_trace_ratio.estimate = "),
        ("nc1_pinv.low>0", "has no nc1_pinv.low to compare (it divides by the smallest directions"),
        ("nc3_cosine.estimate>0", "to compare (no classifier head belongs to this layer)"),
    ],
)
def test_thresholds_may_be_on_estimates_and_intervals(condition: str, words: str) -> None:
    layer = drawn(6)
    low = 0.9 * layer.intervals["nc1_trace_ratio"][0]
    condition = condition.format(low=low)
    (sentence,) = FailureCondition.parse(condition).failures(reported(layer))
    assert words in sentence
    assert sentence.endswith(f"--fail-if {condition!r}")


def test_thresholds_on_an_interval_hold_only_beyond_it() -> None:
    report = reported(drawn(6))
    low, high = report.final.intervals["nc1_trace_ratio"]
    assert FailureCondition.parse(f"nc1_trace_ratio.low>{1.01 * low}").failures(report) == []
    assert FailureCondition.parse(f"nc1_trace_ratio.high<{0.99 * high}").failures(report) == []
    noise = reported(drawn(4, apart=0.0))
    (sentence,) = FailureCondition.parse("nc1_trace_ratio.low>0").failures(noise)
    assert "no nc1_trace_ratio.low to compare (between-class scatter is not above noise: 4 " in (
        sentence
    )


@pytest.mark.parametrize("text", ["nc1_pinv.middle>1", "NC1.low>1%"])
def test_a_part_that_does_not_exist_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"after a metric write \.low, \.high, \.estimate or noth"):
        FailureCondition.parse(text)


@pytest.mark.parametrize("rows", [1, 4, 6])
def test_a_history_keeps_what_is_known(rows: int, tmp_path) -> None:
    report = reported(drawn(rows, apart=0.0 if rows == 4 else 1.0))
    JsonlSink(tmp_path / "run.jsonl").write(1, report)
    ((_, back),) = read_history(tmp_path / "run.jsonl")
    layer, read = report.final, back.final
    assert read.estimates == layer.estimates
    assert read.intervals == layer.intervals
    assert Criteria().judge(read)["NC1"].words == Criteria().judge(layer)["NC1"].words
    name = "nc1_trace_ratio"
    assert read.no_interval.get(name) == layer.no_interval.get(name)


def test_a_report_of_before_has_nothing_beside_its_values(tmp_path) -> None:
    record = reported(drawn(6)).to_dict()
    for key in ("estimates", "intervals", "no_estimate", "no_interval", "standard_errors"):
        del record["layers"]["fc"][key]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))
    old = CollapseReport.load(path)
    assert "est." not in old.table() + old.summary()
    assert no_part(old.final, "nc1_pinv", "low") == "it was not recorded"
    assert no_part(old.final, "nc1_p", "low") == "it was not measured"


def test_a_report_with_them_comes_back_from_json() -> None:
    report = reported(drawn(6))
    back = CollapseReport.from_dict(json.loads(report.to_json()))
    for field in ("estimates", "intervals", "no_estimate", "no_interval"):
        assert getattr(back.final, field) == getattr(report.final, field)
    assert back.table() == report.table()
