"""Reports: strict JSON, a table of 80 columns, sentences, texts of what is missing."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.metrics.layer import to_json_value
from collapsemeter.report.report import TABLE
from collapsemeter.stats.undefined import REASONS

NAMES = ("conv1", "layer1.0.conv2", "features.12.block.conv2", "fc")


@pytest.fixture
def report(make_case) -> CollapseReport:
    layers = {}
    for i, name in enumerate(NAMES):
        case = make_case("balanced")
        rows = case.mu[case.labels] + 4.0**-i * (case.features - case.mu[case.labels])
        m = cm.ClassMoments.from_batch(rows, case.labels, case.C)
        head = cm.Head(case.W, case.b) if name == "fc" else None
        d = cm.decide(m, rows, case.labels, head=head)
        layers[name] = cm.measure(m, head=head, decisions=d)
    return CollapseReport(layers, phase="frozen-train", skipped={"drop": "it changes nothing"})


def test_json_is_strict_and_says_why(report):
    nan = cm.measure(cm.ClassMoments.from_batch(np.eye(2), [0, 0], 3))
    whole = CollapseReport({**report.layers, "a<script>/\n": nan})

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    back = json.loads(whole.to_json(indent=1), parse_constant=refuse)
    assert back["format"] == "collapsemeter.CollapseReport"
    assert list(back["layers"]) == [*NAMES, "a<script>/\n"]
    for name, layer in whole.items():
        told = back["layers"][name]
        for metric, value in layer.items():
            if math.isnan(value):
                assert told["metrics"][metric] is None
                assert told["reasons"][metric] in REASONS
            else:
                assert told["metrics"][metric] == value  # bit for bit through JSON
    fc = back["layers"]["fc"]
    assert "matrices" not in fc  # C x C numbers, which only those ask for who compare
    assert json.loads(whole.to_json(matrices=True))["layers"]["fc"]["matrices"]
    assert fc["provenance"]["convention"]["name"] == "papyan2020"
    assert len(fc["per_class"]["variance"]) == 5
    assert (
        fc["vectors"]["means_singular_values"]
        == report["fc"].vectors["means_singular_values"].tolist()
    )


def test_plain_values():
    value = {
        1: np.float32(0.5),
        "b": (np.bool_(True), {2}),
        "c": np.array([[np.inf, 1]]),
        "d": -np.inf,
    }
    assert to_json_value(value) == {"1": 0.5, "b": [True, [2]], "c": [[None, 1.0]], "d": None}


def test_the_default_table_reads_in_80_columns(report):
    lines = report.table().splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if line.startswith("layer ")]
    assert [metric for head in heads for metric in head[1:]] == list(TABLE)
    assert set(lines[1]) == {"─"}
    body = "\n".join(lines)
    for name in NAMES:
        assert name[:12] in body
    assert len([line for line in lines if not line.startswith("!")]) <= 3 * (2 + len(NAMES) + 1)
    fc = " ".join(line for line in lines if line.startswith("fc "))
    shown = re.sub(r"\([^)]*\)", "", fc.replace("fc ", " ")).split()
    assert [float(cell) for cell in shown] == [float(f"{report['fc'][m]:.3g}") for m in TABLE]
    (conv1,) = [line for line in lines if line.startswith("conv1 ") and line.endswith("-")]
    assert conv1.split()[-2:] == ["-", "-"]  # no head, no logits


def test_a_cell_has_the_estimate_and_the_interval_beside_the_value(report):
    fc = report["fc"]
    low, high = fc.intervals["nc1_trace_ratio"]
    numbers = f"{fc['nc1_trace_ratio']:.3g} (est. {fc.estimates['nc1_trace_ratio']:.3g}, {low:.3g} to {high:.3g})"
    lines = report.table(["nc1_trace_ratio", "nc1_pinv"]).splitlines()
    (line,) = [line for line in lines if line.startswith("fc ")]
    assert f" {numbers}" in line
    assert line.endswith(f" {fc['nc1_pinv']:.3g}")
    narrow = " ".join(report.table(["nc1_trace_ratio"], width=40).split())
    assert f"fc: nc1_trace_ratio {numbers}" in narrow
    assert f"fc: nc1_trace_ratio {numbers}" not in " ".join(lines)


def test_a_table_wider_than_the_page_becomes_several(report):
    for width in (30, 50, 80, 120):
        text = report.table(list(cm.METRICS), width=width)
        assert max(map(len, text.splitlines())) <= max(width, 12 + 1 + max(map(len, cm.METRICS)))
        heads = [line.split()[1:] for line in text.splitlines() if line.startswith("layer ")]
        assert [metric for head in heads for metric in head] == list(cm.METRICS)


def test_columns_stand_two_apart_where_they_fit_and_else_one():
    metrics = ["nc1_pinv", "nc2_equinorm", "nc2_etf_error"]
    made = CollapseReport({"fc": LayerReport(dict.fromkeys(metrics, 0.5))})
    loose = made.table(metrics, width=200)
    room = max(map(len, loose.splitlines()))
    assert made.table(metrics, width=room) == loose
    tight = made.table(metrics, width=room - 1)
    assert max(map(len, tight.splitlines())) == room - len(metrics)
    assert made.table(metrics, width=room - len(metrics)) == tight
    two = made.table(metrics, width=room - len(metrics) - 1).splitlines()
    assert [line.split() for line in two if line.startswith("layer")] == [
        ["layer", *metrics[:2]],
        ["layer", metrics[2]],
    ]


def test_undefined_cells_are_explained_below_the_table():
    nan = cm.measure(cm.ClassMoments.from_batch(np.eye(2), [0, 0], 3))
    text = CollapseReport({"a\nb": nan}, warnings=("the layer never fired " * 9,)).table()
    assert "a\\nb" in text
    assert text.splitlines()[2].split()[1:] == ["nan", "nan", "nan", "-", "-"]
    assert "nan: a\\nb: nc1_pinv, nc2_equinorm, nc2_etf_error: only one class is present" in text
    assert "\n! the layer never fired" in text
    assert max(map(len, text.splitlines())) <= 80
    assert (
        "no reason is known" in CollapseReport({"x": LayerReport({"nc1_pinv": math.nan})}).table()
    )
    assert CollapseReport({}).table().splitlines()[0].split() == ["layer", *TABLE]


def test_standard_errors_are_told_below_the_table_of_what_is_in_it():
    layer = LayerReport(
        {"nc1_pinv": 0.25, "nc2_equinorm": 0.5},
        standard_errors={"nc1_pinv": 0.0123, "nc1_vci": 0.1},
    )
    text = CollapseReport({"wide": layer}).table(["nc1_pinv", "nc2_equinorm", "nc1_vci"])
    notes = [line for line in text.splitlines() if line.startswith("±")]
    assert notes == ["±: wide: nc1_pinv 0.25 ± 0.012 (standard error of a sketch)"]
    assert "±" not in CollapseReport({"wide": layer}).table(["nc2_equinorm"])


def test_the_summary_is_one_line_in_words(report):
    text = report.summary()
    assert text.startswith("fc (frozen-train): NC1 collapsed: 0.0066 % of the variance is within")
    for part in (
        "NC2 not collapsed: class means are 110 % as far from a simplex ETF as random ones",
        ": head and class means differ by ",
        " of rows are not decided by the nearest class mean",
        "least collapsed classes",
    ):
        assert part in text
    assert "\n" not in text
    assert f"nc1_pinv = tr(S_W S_B^+)/C = {report.final['nc1_pinv']:.3g}" in text
    assert repr(report) == f"<CollapseReport {text}>"
    assert CollapseReport({}).summary() == "no layer was measured"
    nan = cm.measure(cm.ClassMoments.from_batch(np.eye(2), [0, 0], 3))
    assert (
        "x (frozen-eval): NC1 and NC2 not judged: only one class is present; NC3 and NC4 not judged: "
        in CollapseReport({"x": nan}).summary()
    )
    assert "[absent_classes]" in CollapseReport({"x": nan}).summary()
    nothing = CollapseReport({"x": LayerReport({})}).summary()
    assert nothing == "x (frozen-eval): NC1, NC2, NC3 and NC4 not judged: not measured"


def test_the_worst_class_is_named():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 5
    std = np.where(labels == 3, 2.0, 0.1)[:, None]
    rows = 3 * np.eye(5)[labels] + std * rng.normal(size=(200, 5))
    layer = cm.measure(cm.ClassMoments.from_batch(rows, labels, 6))
    assert layer.worst_classes(1) == [3]
    assert len(layer.worst_classes(99)) == 5  # the absent one is not among them
    assert "least collapsed classes 3" in CollapseReport({"x": layer}).summary()
    assert LayerReport({}).worst_classes() == []
    on_centre = LayerReport(
        {}, per_class={"variance": np.array([1.0, 1.0]), "mean_norm": np.array([1.0, 0.0])}
    )
    assert on_centre.worst_classes() == [1, 0]


def test_missing_names_are_told_apart(report):
    with pytest.raises(
        KeyError, match="nc3_cosine is not measured for this layer: no classifier head"
    ):
        report["conv1"]["nc3_cosine"]
    with pytest.raises(
        KeyError, match="no metric is named 'nc9'; measured: nc1_pinv, nc1_trace_ratio"
    ):
        report["conv1"]["nc9"]
    with pytest.raises(KeyError, match="nc1_pinv was not measured"):
        LayerReport({})["nc1_pinv"]
    with pytest.raises(
        KeyError, match=r"no layer is named 'fc2'; measured: conv1, layer1\.0\.conv2"
    ):
        report["fc2"]
    with pytest.raises(KeyError, match=r"no layer is named 'drop' \(skipped: it changes nothing\)"):
        report["drop"]
    with pytest.raises(KeyError, match="the report has no layer"):
        _ = CollapseReport({}).final
    assert report["conv1"].get("nc3_cosine") is None
    assert "nc3_cosine" not in report["conv1"]


def test_reports_are_mappings_in_order(report):
    assert list(report) == list(NAMES)
    assert len(report) == 4
    assert report.final is report["fc"]
    layer = report["fc"]
    assert list(layer) == [name for name in cm.METRICS if name in layer]
    assert len(layer) == len(dict(layer))
    assert f"nc1_pinv={layer['nc1_pinv']:.4g}" in repr(layer)
    assert set(dict(layer)) == set(cm.METRICS) - {"weight_balance"}


def test_separation_law_is_a_line_in_the_logarithm(report):
    values = [report[name]["nc1_fuzziness"] for name in NAMES]
    x, y = np.arange(4), np.log(values)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    r = np.corrcoef(x, y)[0, 1]
    np.testing.assert_allclose(report.separation_law(), (slope, r), rtol=1e-12)
    # The spread of every layer is a quarter of the one before: the scatter a sixteenth.
    np.testing.assert_allclose(slope, -math.log(16), rtol=1e-10)

    def law(*found):
        layers = {str(i): LayerReport({"nc1_fuzziness": v}) for i, v in enumerate(found)}
        return CollapseReport(layers).separation_law()

    assert np.isnan(law(1.0, 0.5)).all()
    assert np.isnan(law(1.0, 0.5, math.nan, 0.0)).all()
    np.testing.assert_allclose(law(1.0, math.nan, 0.25, 0.125), (math.log(0.5), -1), rtol=1e-12)
    flat = law(0.5, 0.5, 0.5)
    assert abs(flat[0]) < 1e-15
    assert math.isnan(flat[1])


def test_every_metric_and_reason_has_words():
    for metric in cm.METRICS.values():
        assert metric.meaning
        assert metric.source
    assert all(REASONS.values())
