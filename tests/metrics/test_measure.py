"""Degenerate data: NaN with a reason, never an exception, a warning or 0.0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.stats.accumulate import Accumulator

DEFINED_BY_MEANS = [
    name
    for name in cm.METRICS
    if name.startswith(("nc1", "nc2", "gnc2", "nc3", "means")) and not name.endswith("_head")
]


def every_metric(features, labels, C, W=None, b=None, **options):
    """Measure with a head and decisions, and check what holds of any report."""
    m = cm.ClassMoments.from_batch(features, labels, C, **options)
    W = np.random.default_rng(0).normal(size=m.means.shape) if W is None else W
    head = cm.Head(W, b)
    decisions = cm.decide(m, features, labels, head=head)
    reports = [
        cm.measure(m, head=head, decisions=decisions, convention=preset, center_head=center)
        for preset in cm.PRESETS
        for center in (False, True)
    ]
    for report in reports:
        asked = set(cm.METRICS) - {"weight_balance"}  # needs a second weight
        assert set(report) == asked or not head.finite
        for name, value in report.items():
            assert isinstance(value, float)
            assert not math.isinf(value), name
            assert math.isnan(value) == (name in report.reasons), name
            assert report.reasons.get(name, "one_class") in cm.REASONS
        report.to_dict()
        cm.CollapseReport({"x": report}).summary()
        cm.CollapseReport({"x": report}).table()
    return reports[0]


def assert_undefined(report, names, code):
    for name in names:
        assert math.isnan(report[name]), name
        assert report.reason(name) == code, name


def test_no_row():
    report = every_metric(np.zeros((0, 3)), [], 4)
    assert_undefined(report, DEFINED_BY_MEANS, "no_rows")
    assert_undefined(report, ["nc4_agreement", "ncc_accuracy"], "no_decisions")
    assert report.provenance["absent_classes"] == [0, 1, 2, 3]


@pytest.mark.parametrize(("N", "C"), [(1, 1), (1, 3), (5, 1), (5, 4)])
def test_one_class(N, C):
    rows = np.random.default_rng(0).normal(size=(N, 3))
    report = every_metric(rows, np.zeros(N, int), C)
    assert_undefined(report, DEFINED_BY_MEANS, "one_class")
    assert_undefined(report, ["nc4_agreement", "nc4_mismatch", "ncc_accuracy"], "one_class")


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_all_means_equal(value):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(10, 4))
    rows = value + np.concatenate([noise, -noise, noise, -noise]) * (1 if value < 1e9 else 0)
    report = every_metric(rows, np.repeat([0, 1], 20), 3)
    names = [n for n in DEFINED_BY_MEANS if n != "means_condition"]
    assert_undefined(report, names, "no_between_class_scatter")


def test_absent_classes_are_left_out_and_listed(make_case):
    case = make_case("imbalanced")
    shift = case.labels + (case.labels >= 4)  # no row has class 4
    W = np.insert(case.W, 4, 0.0, axis=0)
    report = every_metric(case.features, shift, case.C + 1, W, np.insert(case.b, 4, -99.0))
    assert report.provenance["absent_classes"] == [4]
    assert "absent_classes" in report.flags
    for name, value in case.measure().items():
        np.testing.assert_allclose(report[name], value, rtol=1e-12, err_msg=name)
    for column in ("variance", "mean_norm", "worst_cosine", "ncc_accuracy"):
        np.testing.assert_array_equal(np.isnan(report.per_class[column]), np.arange(11) == 4)


def test_one_sample_classes_count_with_no_variance(make_case):
    case = make_case("zipf_tail")
    report = every_metric(case.features, case.labels, case.C, case.W, case.b)
    ones = np.flatnonzero(case.n == 1).tolist()
    assert report.provenance["single_sample_classes"] == ones
    assert "single_sample_classes" in report.flags
    np.testing.assert_array_equal(report.per_class["variance"][ones], 0.0)
    np.testing.assert_allclose(report.per_class["variance"], case.v, rtol=1e-12)
    norms = np.linalg.norm(case.M(), axis=1)
    np.testing.assert_allclose(report.per_class["mean_norm"], norms, rtol=1e-12)


def test_zero_rows_and_zero_head():
    rows = np.array([[0.0, 0], [0, 0], [1, 0], [0, 2]])
    report = every_metric(rows, [0, 0, 1, 2], 3, np.zeros((3, 2)))
    assert report.reason("nc3_self_duality") == "zero_head"
    assert report.reason("dnc3_sine") == "zero_class_mean"
    assert math.isfinite(report["nc1_trace_ratio"])


def test_coincident_means():
    rows = np.array([[1.0, 2], [1, 2], [5, 1], [1, 2], [4, 0]])
    report = every_metric(rows, [0, 1, 2, 0, 2], 3)
    assert report.reason("nc1_cdnv") == "coincident_class_means"
    assert report.reason("gnc2_log_mean") == "coincident_directions"
    assert math.isfinite(report["nc1_pinv"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
def test_a_propagated_row_makes_metrics_nan_and_leaves_other_classes(value, kind):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    rows = rng.normal(size=(30, 4)) + 3 * np.eye(3, 4)[labels]
    clean = every_metric(rows, labels, 3, scatter=kind)
    rows[4, 2] = value
    skipped = every_metric(rows, labels, 3, scatter=kind)
    assert skipped.provenance["nonfinite_rows"] == 1
    assert "nonfinite_rows" in skipped.flags
    assert math.isfinite(skipped["nc1_trace_ratio"])
    report = every_metric(rows, labels, 3, scatter=kind, nonfinite="propagate")
    of_data = [n for n in clean if not n.endswith("_head")]
    for name in of_data:
        # A scatter that was not kept is the first thing missing.
        code = "no_scatter" if kind == "trace" and name == "features_effective_rank" else None
        assert_undefined(report, [name], code or "nonfinite_statistics")
    for name in ("nc2_etf_error_head", "nc2_equinorm_head"):
        assert report[name] == clean[name]
    np.testing.assert_array_equal(np.isnan(report.per_class["variance"]), [False, True, False])
    np.testing.assert_allclose(
        report.per_class["variance"][[0, 2]], clean.per_class["variance"][[0, 2]], rtol=1e-13
    )
    np.testing.assert_array_equal(report.per_class["count"], [10, 10, 10])


@given(
    seed=st.integers(0, 10**6),
    C=st.integers(1, 6),
    d=st.integers(1, 4),
    N=st.integers(0, 8),
    kind=st.sampled_from(["class", "pooled", "sketch", "trace"]),
    policy=st.sampled_from(["skip", "propagate"]),
)
def test_small_integers_with_anything_missing_never_raise_or_warn(seed, C, d, N, kind, policy):
    """Small integers coincide, vanish and line up as random floats never do."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (N, d)).astype(float)
    rows[rng.random((N, d)) < 0.05] = rng.choice([np.nan, np.inf])
    labels = np.where(rng.random(N) < 0.1, -100, rng.integers(0, C, N))
    every_metric(rows, labels, C, rng.integers(-1, 2, (C, d)), scatter=kind, nonfinite=policy)


def test_values_near_the_end_of_float64_are_out_of_range():
    rows = 1e307 * np.random.default_rng(0).uniform(
        0, 8, (150, 4)
    )  # fifty of a class add up to Inf
    layer = cm.measure(cm.ClassMoments.from_batch(rows, np.arange(150) % 3, 3))
    assert layer.reason("nc1_pinv") == layer.reason("nc2_equinorm") == "nonfinite_statistics"


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e-160, 1e-100, 1e100, 1e160, 1e200, 1e300])
def test_values_whose_squares_leave_float64(size):
    rng = np.random.default_rng(0)
    rows, labels = size * rng.normal(size=(20, 3)), np.arange(20) % 3
    report = every_metric(rows, labels, 3)
    of_rows = [
        "features_effective_rank",
        "dnc3_sine",
        "nc4_agreement",
        "nc4_mismatch",
        "ncc_accuracy",
    ]
    assert_undefined(report, DEFINED_BY_MEANS + of_rows, "out_of_range")
    same = every_metric(np.tile(rows[:1], (20, 1)), labels, 3)
    code = "no_between_class_scatter" if size < 1 else "out_of_range"
    assert_undefined(same, ["nc1_pinv", "nc2_equinorm"], code)
    of_head = [n for n in cm.METRICS if n.endswith("_head")] + ["nc3_self_duality", "dnc3_sine"]
    weight = size * rng.normal(size=(3, 3))
    for head in (np.full((3, 3), size), weight):
        report = every_metric(rows / size, labels, 3, head, np.full(3, size))
        assert_undefined(report, of_head, "out_of_range" if size < 1 else "nonfinite_head")
        if size < 1:
            assert report["nc3_bias"] > 0
    balance = cm.measure(
        cm.ClassMoments.from_batch(rows / size, labels, 3), weight=weight, incoming=weight
    )
    assert_undefined(balance, ["weight_balance"], "out_of_range" if size < 1 else "nonfinite_head")


SCALES = [
    10.0**k for k in (-323, -310, -200, -170, -160, -100, -76, -40, 40, 76, 100, 152, 160, 200, 307)
]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
def test_no_scale_leaks_a_warning_or_another_reason(scale, kind):
    """Warnings are errors here: batch, stream, merge, decisions, metrics and a comparison with another."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = scale * (rng.normal(size=(3, 4))[labels] + 0.1 * rng.normal(size=(60, 4)))
    parts = [np.flatnonzero(labels >= 1), np.flatnonzero(labels < 1), np.arange(60)]
    stream = cm.ClassMoments.empty(3, 4, scatter=kind)
    sums = Accumulator(3, 4, kind)
    states = []
    for seed, part in enumerate(parts):
        stream = stream.update(rows[part], labels[part])
        sums.update(rows[part], labels[part])
        options = {"scatter": kind, "seed": seed}
        states.append(cm.ClassMoments.from_batch(rows[part], labels[part], 3, **options))
    head = cm.Head(rng.normal(size=(3, 4)), rng.normal(size=3))
    for moments in (
        stream,
        cm.ClassMoments.merge_all(states),
        cm.ClassMoments.merge_all(states[::-1]),
        sums.moments(),
    ):
        decisions = cm.decide(moments, rows, labels, head=head)
        report = cm.measure(moments, head=head, decisions=decisions)
        known = 1e-75 < scale < 1e75
        for name in ("nc1_trace_ratio", "nc2_etf_error", "nc3_cosine", "nc4_mismatch", "dnc3_sine"):
            assert math.isfinite(report[name]) == known, name
            assert report.reason(name) == (None if known else "out_of_range"), name
        cm.compare(cm.CollapseReport({"fc": report}), cm.CollapseReport({"fc": report})).table()


@pytest.mark.parametrize("size", [1e-200, 1e-170, 1e-90, 1e90, 1e170])
def test_a_class_far_off_the_scale_of_the_others_is_no_warning(size):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    rows = rng.normal(size=(30, 4)) + np.eye(3, 4)[labels]
    rows[labels == 1] *= size
    report = every_metric(rows, labels, 3)
    assert (report.reason("nc1_pinv") == "out_of_range") == (size > 1)


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("spread", [1e-37, 1e-40, 1e-74, 1e-76, 1e-100, 1e-158, 1e-170])
def test_rows_whose_spread_beside_their_means_leaves_float64_are_no_error(spread, kind):
    """Exact means lie along one feature, and the others hardly vary: no warning, and a value or a reason."""
    rng = np.random.default_rng(0)
    labels, means = np.arange(60) % 3, rng.normal(size=(3, 4))
    rows = np.where([True, False, False, False], means[labels], spread * rng.normal(size=(60, 4)))
    moments = cm.ClassMoments.from_batch(rows, labels, 3, scatter=kind)
    report = cm.measure(moments, head=cm.Head(means))
    expected = (rows[:, 1:] - moments.means[labels, 1:]) ** 2 / means[:, 0].var() / 60
    np.testing.assert_allclose(report["nc1_trace_ratio"], expected.sum(), rtol=1e-5, atol=1e-320)
    code = "no_scatter" if kind == "trace" else "out_of_range"
    if spread > 1e-160:
        assert_undefined(report, ["nc1_vci_shrunk"], code)


def test_rows_that_cancel_beyond_the_range_are_out_of_it_and_not_equal_means():
    """Squares that overflow say nothing of how near the means are."""
    rows = np.array([[1e160, 0.0], [-1e160, 0.0], [1.0, 1.0], [2.0, 1.0]])
    report = every_metric(rows, [0, 0, 1, 1], 2)
    assert_undefined(report, DEFINED_BY_MEANS, "out_of_range")


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e20, 1e38])
def test_the_whole_range_of_float32_is_measured(size, make_case):
    case = make_case("balanced")
    report = every_metric(size * case.features, case.labels, case.C, size * case.W)
    for name, value in case.measure().items():
        if name != "nc3_bias" and not name.startswith(("nc4", "ncc")):
            np.testing.assert_allclose(report[name], value, rtol=1e-10, err_msg=name)


def test_what_does_not_fit_the_layer_is_refused(make_case):
    case = make_case("balanced")
    with pytest.raises(
        ValueError,
        match=r"head weight has shape \(12, 5\), the class means \(5, 12\): pass its transpose",
    ):
        cm.measure(case.moments, head=cm.Head(case.W.T))
    with pytest.raises(
        ValueError, match=r"head weight has shape \(4, 12\), the class means \(5, 12\)$"
    ):
        cm.measure(case.moments, head=cm.Head(case.W[:4]))
    with pytest.raises(ValueError, match=r"weight has shape \(3, 7\), the layer has 12 features"):
        cm.measure(case.moments, weight=np.ones((3, 7)))
    with pytest.raises(ValueError, match=r"weight has shape \(12,\)"):
        cm.measure(case.moments, weight=np.ones(12))
    few = cm.Decisions(np.zeros(3, int), np.zeros(3, int), None, False)
    with pytest.raises(ValueError, match="decisions are about 3 classes, the moments about 5"):
        cm.measure(case.moments, decisions=few)
    with pytest.raises(ValueError, match="convention='zhu': choose"):
        cm.measure(case.moments, convention="zhu")


def test_absent_metrics_have_reasons(make_case):
    case = make_case("balanced")
    bare = cm.measure(case.moments)
    for name in cm.METRICS:
        if name.startswith("nc3") or name.endswith("_head"):
            assert name not in bare
            assert bare.reason(name) == "no_head"
    assert bare.reason("ncc_accuracy") == "no_decisions"
    blind = cm.measure(case.moments, decisions=cm.decide(case.moments, case.features, case.labels))
    assert blind.reason("nc4_agreement") == blind.reason("nc4_mismatch") == "no_logits"
    assert "ncc_accuracy" in blind


def test_the_convention_is_recorded(make_case, preset):
    seen = make_case("binary").measure(convention=preset, center_head=True).provenance["convention"]
    assert seen["name"] == preset
    assert seen["center"] == cm.PRESETS[preset].center
    assert seen["center_head"] is True
    custom = cm.Convention(center="sample", within="class")
    assert (
        make_case("binary").measure(convention=custom).provenance["convention"]["name"] == "custom"
    )


def rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a float dtype and back; bfloat16 by the upper half of float32, to nearest."""
    if dtype != "bfloat16":
        return rows.astype(dtype).astype(np.float64)
    bits = rows.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


UNIT = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


@pytest.mark.parametrize("dtype", list(UNIT))
@pytest.mark.parametrize("tenths", [1, 3, 10, 30, 100, 300])
@pytest.mark.parametrize(("C", "d", "offset"), [(4, 64, 0.0), (10, 32, 0.0), (6, 48, 2.0)])
def test_rounding_that_makes_up_half_of_nc1_is_flagged(dtype, tenths, C, d, offset):
    """Within-class std of 0.01 to 30 units in the last place at 1."""
    rng = np.random.default_rng(C)
    labels = np.arange(100 * C) % C
    means = rng.normal(size=(C, d)) + offset
    rows = means[labels] + tenths / 10 * UNIT[dtype] * rng.normal(size=(len(labels), d))
    true = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))["nc1_pinv"]
    m = cm.ClassMoments.from_batch(rounded(rows, dtype), labels, C)
    sums = dict(m.__dict__, feature_dtype=dtype)
    report = cm.measure(cm.ClassMoments(**sums))
    share = (report["nc1_pinv"] - true) / report["nc1_pinv"]
    flagged = "at_dtype_floor" in report.flags
    # Between 0.4 and 0.6 it is the sampling of the rounding errors that decides.
    if share > 0.6:
        assert flagged, share
    if (
        abs(share) < 0.4
        and report["nc1_trace_ratio"] > 3 * report.provenance["dtype_floor"]["nc1_trace_ratio"]
    ):
        assert not flagged, share


def test_the_floor_is_what_rounding_adds():
    """Once the spread is about a unit in the last place, the excess is the stated floor."""
    rng = np.random.default_rng(1)
    C, d = 10, 64
    labels = np.arange(200 * C) % C
    means = rng.normal(size=(C, d))
    rows = means[labels] + 1e-2 * rng.normal(size=(len(labels), d))
    true = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))
    m = cm.ClassMoments.from_batch(rounded(rows, "bfloat16"), labels, C)
    report = cm.measure(cm.ClassMoments(**dict(m.__dict__, feature_dtype="bfloat16")))
    for name, floor in report.provenance["dtype_floor"].items():
        # An error of sampling: 200 rows, d C entries.
        np.testing.assert_allclose(report[name] - true[name], floor, rtol=0.25, err_msg=name)


def test_the_floor_of_float64_is_far_below_and_of_theory_is_none(make_case):
    assert "at_dtype_floor" not in make_case("near_collapse").measure().flags
    collapsed = cm.ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3)
    assert "at_dtype_floor" in cm.measure(collapsed).flags
    theory = cm.ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3, phase="reference")
    assert "at_dtype_floor" not in cm.measure(theory).flags
    integers = cm.ClassMoments.from_batch(np.eye(3, dtype=int), [0, 1, 2], 3)
    assert cm.measure(integers).provenance["dtype_floor"] == {}
