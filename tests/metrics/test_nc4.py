"""NC4: nearest class centres against long doubles, intervals, merges, whose decision counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import Decisions, Head, decide
from collapsemeter.metrics import class_centres
from collapsemeter.metrics.class_centres import ClassCentres
from collapsemeter.metrics.frames import simplex_etf
from collapsemeter.metrics.nc4 import wilson_interval


def nearest_class(moments, rows) -> np.ndarray:
    return ClassCentres(moments).nearest(np.asarray(rows, float))


def nearest_oracle(rows, mu) -> np.ndarray:
    """One row and one class at a time, in long double."""
    wide, centres = rows.astype(np.longdouble), mu.astype(np.longdouble)
    return np.array([np.argmin([((h - m) ** 2).sum() for m in centres]) for h in wide])


def test_agreement_mismatch_and_accuracy(case):
    nearest = nearest_oracle(case.features, case.mu)
    network = np.array([np.argmax(case.W @ h + case.b) for h in case.features])
    report = case.measure()
    assert report["nc4_agreement"] == np.mean(network == nearest)
    assert report["nc4_mismatch"] == np.mean(network != nearest)
    assert report["ncc_accuracy"] == np.mean(nearest == case.labels)
    per_class = [np.mean(nearest[case.labels == c] == c) for c in range(case.C)]
    np.testing.assert_allclose(report.per_class["ncc_accuracy"], per_class, rtol=1e-15)
    shares = {"nc4_agreement", "nc4_mismatch", "ncc_accuracy"}
    assert not shares & report.intervals.keys()  # every row was decided on


@pytest.mark.parametrize(("C", "d"), [(4, 6), (7, 6), (2, 2), (200, 199)])
def test_a_perfect_simplex_decides_by_nearest_centre(C, d):
    frame = simplex_etf(C, d)
    rows, labels = np.repeat(frame, 2, axis=0), np.repeat(np.arange(C), 2)
    m = cm.ClassMoments.from_batch(rows, labels, C)
    head = Head(frame)
    report = cm.measure(m, head=head, decisions=decide(m, rows, labels, head=head))
    assert report["nc4_agreement"] == report["ncc_accuracy"] == 1.0
    assert report["nc4_mismatch"] == 0.0


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_centre_under_an_offset(offset, dtype):
    rng = np.random.default_rng(4)
    C, d, N = 9, 16, 600
    labels = np.arange(N) % C
    rows = (offset + rng.normal(size=(C, d))[labels] + 1.5 * rng.normal(size=(N, d))).astype(dtype)
    m = cm.ClassMoments.from_batch(rows, labels, C)
    wide = rows.astype(np.longdouble)
    mu = np.array([wide[labels == c].sum(axis=0) / (labels == c).sum() for c in range(C)])
    distances = ((wide[:, None] - mu) ** 2).sum(axis=2)
    ordered = np.sort(distances, axis=1)
    # Rows on float32's coarse grid may lie on a boundary to within the round-off of a mean.
    clear = ordered[:, 1] - ordered[:, 0] > 1e-12 * (ordered[:, 1] + 1)
    assert clear.mean() > (0.9 if dtype is np.float64 or offset < 1e8 else -1)
    np.testing.assert_array_equal(nearest_class(m, rows)[clear], distances.argmin(axis=1)[clear])


def test_centres_too_near_for_the_expanded_form():
    """Two centres 1e-9 apart, a thousand away from the third: exact differences decide."""
    mu = np.array([[0.0, 0.0], [1e-9, 0.0], [1e3, 1e3]])
    m = cm.ClassMoments.from_batch(mu, [0, 1, 2], 3)
    rows = np.array([[0.4e-9, 0.0], [0.6e-9, 0.0], [999.0, 1000.0], [0.4e-9, 1e-3], [0.6e-9, 1e-3]])
    np.testing.assert_array_equal(nearest_class(m, rows), [0, 1, 2, 0, 1])


def test_doubtful_rows_are_decided_by_exact_differences():
    """Rows 4.5 from two centres 2e-11 apart, 1000 from the middle: neither near nor clear.

    The expanded form errs by eps 1000^2 = 2e-10, the squared distances differ by 1e-10.
    """
    mu = np.array([[0.0, 0.0], [2e-11, 0.0], [3e3, 0.0]])
    m = cm.ClassMoments.from_batch(mu, [0, 1, 2], 3)
    angle = np.linspace(0, 2 * np.pi, 400)
    rows = 4.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rows = rows[np.abs(rows[:, 0]) > 0.5]
    np.testing.assert_array_equal(nearest_class(m, rows), nearest_oracle(rows, mu))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.sampled_from([0.0, 1e-9, 0.1, 1.0]),
    st.sampled_from([0.0, 1e3]),
    st.sampled_from([np.float64, np.float32, np.float16]),
)
def test_a_likely_class_never_changes_the_decision(seed, d, spread, offset, dtype):
    """Rows near centres, on the boundary of two (ties, and one rounding to either side), and anywhere."""
    rng = np.random.default_rng(seed)
    mu = rng.integers(-2, 3, (5, d)) / 4.0  # some coincide, many midpoints are exact ties
    m = cm.ClassMoments.from_batch(np.repeat(mu + offset, 2, axis=0), np.arange(10) // 2, 7)
    a, b = rng.integers(0, 5, (2, 200))
    middle = offset + (mu[a] + mu[b]) / 2
    side = np.nextafter(middle, offset + mu[a])
    near = offset + mu[a] + spread * rng.normal(size=(200, d))
    rows = np.concatenate([middle, side, near]).astype(dtype)
    centres = ClassCentres(m)
    alone = centres.nearest(rows.astype(np.float64))
    for likely in (np.tile(a, 3), np.tile(b, 3), rng.integers(0, 5, 600), alone):
        np.testing.assert_array_equal(centres.nearest(rows, likely), alone)


@pytest.mark.parametrize("rows_of_a_class", [1, 3, 4, 50])
def test_a_row_within_reach_of_its_centre_is_compared_with_no_other(monkeypatch, rows_of_a_class):
    rng = np.random.default_rng(0)
    mu, labels = 10 * np.eye(4, 8), np.repeat(np.arange(4), rows_of_a_class)
    rows = mu[labels] + 0.1 * rng.normal(size=(len(labels), 8))
    m = cm.ClassMoments.from_batch(rows, labels, 4)
    compared = []

    def counting(points, *centres):
        compared.append(len(points))
        return of_all(points, *centres)

    of_all = class_centres._nearest_centre
    monkeypatch.setattr(class_centres, "_nearest_centre", counting)
    assert decide(m, rows, labels).correct.tolist() == [rows_of_a_class] * 4
    assert sum(compared) == (0 if rows_of_a_class >= class_centres.WORTH_ROWS else len(rows))


def test_the_only_class_is_nearest_to_all():
    m = cm.ClassMoments.from_batch([[0.0], [1.0]], [2, 2], 4)
    rows = np.array([[0.0], [1e70], [np.nan], [-1e70], [2.0], [3.0]])
    found = decide(m, rows, np.full(6, 2))
    assert found.rows.tolist() == found.correct.tolist() == [0, 0, 5, 0]


def test_rows_in_blocks_equal_rows_at_once(make_case, monkeypatch):
    case = make_case("imbalanced")
    whole = nearest_class(case.moments, case.features)
    monkeypatch.setattr(class_centres, "TILE", 9)
    np.testing.assert_array_equal(nearest_class(case.moments, case.features), whole)


def test_ties_go_to_the_first_class_and_absent_classes_are_never_nearest():
    m = cm.ClassMoments.from_batch([[-1.0], [1.0]], [1, 3], 5)
    np.testing.assert_array_equal(nearest_class(m, [[0.0], [0.1], [-9.0]]), [1, 3, 1])
    assert nearest_class(m, np.zeros((0, 1))).shape == (0,)
    nothing = cm.ClassMoments.empty(3, 1)
    np.testing.assert_array_equal(nearest_class(nothing, [[1.0]]), [-1])
    assert decide(nothing, [[1.0]], [0]).rows.sum() == 0


def three():
    rows, labels = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array([0, 0, 1, 1])
    return cm.ClassMoments.from_batch(rows, labels, 2), rows, labels


def test_predictions_before_logits_before_head():
    m, rows, labels = three()
    wrong, right = Head([[1.0], [0.0]], [0.0, 0.5]), np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    assert decide(m, rows, labels).agree is None
    assert decide(m, rows, labels, head=wrong).agree.tolist() == [1, 0]
    assert decide(m, rows, labels, head=wrong, logits=right).agree.tolist() == [2, 2]
    decided = decide(m, rows, labels, head=wrong, logits=right, predictions=[0, 1, 1, 1])
    assert decided.agree.tolist() == [1, 2]
    single_logit = np.array([-2.0, -1.0, 1.0, 2.0])
    assert decide(m, rows, labels, predictions=single_logit > 0).agree.tolist() == [2, 2]


def test_the_bias_takes_part_in_the_decision():
    m, rows, labels = three()
    W = [[-1.0], [1.0]]
    assert decide(m, rows, labels, head=Head(W)).agree.sum() < 4
    assert decide(m, rows, labels, head=Head(W, [5.0, -5.0])).agree.sum() == 4


def test_logits_or_heads_with_nan_decide_nothing():
    m, rows, labels = three()
    logits = np.array([[np.nan, 0.0], [1, 0], [0, 1], [np.inf, -np.inf]])
    assert decide(m, rows, labels, logits=logits).agree.tolist() == [1, 1]
    assert decide(m, rows, labels, head=Head([[np.nan], [1.0]])).agree is None
    assert decide(m, rows, labels, head=Head(np.ones((2, 1)), [np.inf, 0])).agree is None


def test_ignored_and_nonfinite_rows_and_classes_without_a_centre_are_left_out():
    m, *_ = three()
    wide = cm.ClassMoments(np.r_[m.counts, 0], np.r_[m.means, [[0.0]]], None, np.r_[m.traces, 0.0])
    rows = np.array([[0.0], [np.nan], [np.inf], [5.0], [1.0]])
    head = Head(np.ones((3, 1)))
    d = decide(wide, rows, [0, 0, 1, 2, -100], head=head)
    assert d.rows.tolist() == [1, 0, 0]
    d = decide(m, [[0.0], [1.0]], [0, 255], ignore_index=255)
    assert d.rows.tolist() == [1, 0]
    assert decide(m, [[0.0]], [[1]]).rows.tolist() == [0, 1]
    assert decide(m, [[0.0]], [[1, 0]]).correct.tolist() == [1, 0]


def test_a_poisoned_class_has_no_centre_and_the_others_keep_theirs():
    rows = np.array([[np.nan], [0.0], [1.0], [9.0], [10.0], [20.0]])
    labels = np.array([0, 0, 1, 2, 2, 1])
    m = cm.ClassMoments.from_batch(rows, labels, 3, nonfinite="propagate")
    d = decide(m, rows, labels, logits=np.eye(3)[labels])
    assert d.rows.tolist() == [0, 2, 2]
    report = cm.measure(m, decisions=d)
    for name in ("nc4_agreement", "nc4_mismatch", "ncc_accuracy"):
        assert np.isnan(report[name])
        assert report.reason(name) == "nonfinite_statistics"
    assert np.isnan(report.per_class["ncc_accuracy"][0])
    assert np.isfinite(report.per_class["ncc_accuracy"][1:]).all()


def test_what_does_not_fit_is_refused_in_words():
    m, rows, labels = three()
    with pytest.raises(
        ValueError, match=r"features have shape \(4, 2\), the moments are about 1 features"
    ):
        decide(m, np.c_[rows, rows], labels)
    with pytest.raises(
        ValueError, match=r"shape \(4, 1\) and labels \(3,\): pass one label per row"
    ):
        decide(m, rows, labels[:3])
    with pytest.raises(
        ValueError, match=r"head weight has shape \(2, 3\), the class means \(2, 1\)"
    ):
        decide(m, rows, labels, head=Head(np.ones((2, 3))))
    with pytest.raises(
        ValueError,
        match=r"the network decided on rows of shape \(2,\), features have shape \(4, 1\)",
    ):
        decide(m, rows, labels, predictions=[0, 1])
    with pytest.raises(
        ValueError, match=r"logits have shape \(4, 1\): pass one column for each of the 2"
    ):
        decide(m, rows, labels, logits=rows)
    with pytest.raises(ValueError, match="label 2 at row 3"):
        decide(m, rows, [0, 0, 1, 2])


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ({"predictions": [1, 1, 2, 2]}, r"prediction 2 at row 2 is outside 0\.\.1"),  # from 1 on
        ({"predictions": [0.1, 0.2, 0.7, 0.6]}, r"prediction 0\.1 at row 0 is outside"),
        ({"predictions": [0, 0, np.nan, 1]}, "prediction nan at row 2 is outside"),
        ({"predictions": [0, 0, -100, 1]}, "prediction -100 at row 2 is outside"),
        ({"predictions": ["0", "0", "1", "1"]}, "predictions have dtype <U1"),
        ({"logits": np.ones((4, 3))}, r"logits have shape \(4, 3\): pass one column for each of the 2"),
        ({"logits": np.ones((4, 2)).astype(str)}, "logits have shape .* dtype <U32: pass real numbers"),
    ],
)  # fmt: skip
def test_decisions_that_are_of_no_class_are_refused(network, text):
    """They would be counted as rows on which the network disagrees with the nearest class centre."""
    m, rows, labels = three()
    with pytest.raises(ValueError, match=text):
        decide(m, rows, labels, **network)


def test_decisions_on_rows_without_a_label_may_be_anything():
    m, rows, labels = three()
    decided = decide(m, rows, [-100, *labels[1:]], predictions=[-100.0, *labels[1:]])
    assert decided.agree.sum() == decided.rows.sum() == 3


def test_wilson_interval_equals_published_values():
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, rows), ends in published.items():
        np.testing.assert_allclose(wilson_interval(successes, rows), ends, rtol=0, atol=5e-5)


@given(rows=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_mirrors(rows, share):
    successes = round(share * rows)
    low, high = wilson_interval(successes, rows)
    assert 0 <= low <= successes / rows + 1e-12
    assert successes / rows - 1e-12 <= high <= 1
    mirrored = wilson_interval(rows - successes, rows)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), rtol=0, atol=1e-12)


def test_a_sample_of_the_rows_is_flagged_and_has_intervals(make_case):
    case = make_case("imbalanced")
    head = Head(case.W, case.b)
    some = decide(case.moments, case.features[:100], case.labels[:100], head=head)
    assert some.sampled
    assert not decide(case.moments, case.features, case.labels, head=head).sampled
    assert decide(case.moments, case.features, case.labels, sampled=True).sampled
    assert not decide(case.moments, case.features[:5], case.labels[:5], sampled=False).sampled
    report = cm.measure(case.moments, head=head, decisions=some)
    for name in ("nc4_agreement", "nc4_mismatch", "ncc_accuracy"):
        low, high = report.intervals[name]
        assert low <= report[name] <= high
        N = len(case.labels)
        worth = 100 * (N - 1) / (N - 100)  # drawn without replacement
        assert report.intervals[name] == wilson_interval(report[name] * worth, worth)
    assert report.provenance["nc4_sampled"] is True
    assert report.provenance["nc4_rows"] == 100


def test_decisions_merge_by_addition(make_case):
    case = make_case("balanced")
    head = Head(case.W, case.b)
    whole = decide(case.moments, case.features, case.labels, head=head)
    parts = [
        decide(case.moments, case.features[i], case.labels[i], head=head, sampled=False)
        for i in np.array_split(np.arange(len(case.labels)), 4)
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    for name in ("rows", "correct", "agree"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert not merged.sampled
    blind = decide(case.moments, case.features[:3], case.labels[:3])
    assert merged.merge(blind).agree is None
    assert merged.merge(blind).sampled
    with pytest.raises(ValueError, match="decisions about 5 classes and about 2"):
        whole.merge(Decisions(np.zeros(2, int), np.zeros(2, int), None, False))
