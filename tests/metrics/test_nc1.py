"""NC1 against the paper's formulas by brute force, exact cases, invariances, degenerate scatters."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.metrics import nc1, pairs
from collapsemeter.metrics.frames import simplex_etf
from collapsemeter.metrics.spectra import cholesky, singular_values

EPS = np.finfo(np.float64).eps
NC1 = ("nc1_pinv", "nc1_trace_ratio", "nc1_cdnv", "nc1_fuzziness", "nc1_vci")


def pinv(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """Return the pseudo-inverse of a scatter of known rank, and its condition number."""
    values, axes = np.linalg.eigh(matrix)
    values, axes = values[-rank:], axes[:, -rank:]
    return axes / values @ axes.T, values[-1] / values[0]


def rank_of(case) -> int:
    return min(case.C - 1, case.features.shape[1])


def test_nc1_pinv_is_the_trace_of_within_times_pseudo_inverse_of_between(case, preset):
    S_B, S_W = case.S_B(preset), case.S_W(preset)
    inverse, condition = pinv(S_B, rank_of(case))
    expected = np.trace(S_W @ inverse)
    if cm.PRESETS[preset].divide_by_classes:
        expected /= case.C
    # The oracle inverts S_B in float64: a relative error of eps times its condition number, d times.
    tolerance = 8 * len(S_B) * EPS * condition
    assert tolerance <= 1e-5  # 1e-4 between singular values of M is 1e-8 between those of S_B
    np.testing.assert_allclose(
        case.measure(convention=preset)["nc1_pinv"], expected, rtol=tolerance
    )


def printed_scatters(rows, labels):
    """SSw and SSb as He & Su 2023 print them: sums over rows, each divided by n."""
    n, d = rows.shape
    SSw, SSb, grand = np.zeros((d, d)), np.zeros((d, d)), rows.mean(axis=0)
    for k in np.unique(labels):
        of_class = rows[labels == k]
        mean = of_class.mean(axis=0)
        SSb += len(of_class) * np.outer(mean - grand, mean - grand) / n
        for row in of_class:
            SSw += np.outer(row - mean, row - mean) / n
    return SSw, SSb


def test_nc1_fuzziness_is_what_he_and_su_print(case):
    SSw, SSb = printed_scatters(case.features, case.labels)
    inverse, condition = pinv(SSb, rank_of(case))
    tolerance = 8 * case.features.shape[1] * EPS * condition
    for preset in ("papyan2020", "zhu2021", "he_su2023_imbalanced"):
        found = case.measure(convention=preset)["nc1_fuzziness"]
        np.testing.assert_allclose(found, np.trace(SSw @ inverse), rtol=tolerance)


def test_nc1_fuzziness_weights_classes_alike_where_their_code_for_balanced_data_is_asked_for(case):
    inverse, condition = pinv(case.S_B("he_su2023"), rank_of(case))
    expected = np.trace(case.S_W("he_su2023") @ inverse)
    report = case.measure(convention="he_su2023")
    tolerance = 8 * case.features.shape[1] * EPS * condition
    np.testing.assert_allclose(report["nc1_fuzziness"], expected, rtol=tolerance)
    assert report["nc1_fuzziness"] == report["nc1_pinv"]


def test_the_two_forms_of_fuzziness_are_far_apart_on_classes_of_unequal_size():
    """Rare classes far from the others count little in S_B by rows and much in S_B by classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), (403, 120, 50, 20, 7))
    rows = rng.normal(size=(5, 16))[labels] + 0.5 * rng.normal(size=(600, 16))
    SSw, SSb = printed_scatters(rows, labels)
    printed = np.trace(SSw @ pinv(SSb, 4)[0])
    m = cm.ClassMoments.from_batch(rows, labels, 5)
    by_rows, by_class = (
        cm.measure(m, convention=name)["nc1_fuzziness"] for name in ("papyan2020", "he_su2023")
    )
    np.testing.assert_allclose(by_rows, printed, rtol=1e-12)
    assert by_rows > 3 * by_class


def test_nc1_trace_ratio(case, preset):
    expected = np.trace(case.S_W(preset)) / np.trace(case.S_B(preset))
    actual = case.measure(convention=preset)["nc1_trace_ratio"]
    # Brute force takes the means to eps |h|; v_c then carries 2 eps |h| / std.
    offset = np.abs(case.features).max() / np.sqrt(case.v[case.v > 0].min())
    np.testing.assert_allclose(actual, expected, rtol=1e-12 + 8 * EPS * offset)


def test_nc1_cdnv_is_a_mean_over_pairs(case):
    total, count = 0.0, 0
    for a in range(case.C):
        for b in range(a + 1, case.C):
            total += (case.v[a] + case.v[b]) / (2 * ((case.mu[a] - case.mu[b]) ** 2).sum())
            count += 1
    offset = np.abs(case.features).max() / np.sqrt(case.v[case.v > 0].min())
    np.testing.assert_allclose(
        case.measure()["nc1_cdnv"], total / count, rtol=1e-12 + 8 * EPS * offset
    )


def test_nc1_vci(case, preset):
    if len(case.labels) - case.C < case.features.shape[1]:
        report = case.measure(convention=preset)
        assert case.name == "few_samples"
        assert np.isnan(report["nc1_vci"])
        assert report.reason("nc1_vci") == "within_scatter_rank_deficient"
        return
    S_B, S_W = case.S_B(preset), case.S_W(preset)
    # Rows less class means span N - C dimensions at most, the means C - 1 more.
    rank = min(len(S_B), len(case.labels) - 1)
    inverse, condition = pinv(S_B + S_W, rank)
    expected = 1 - np.trace(inverse @ S_B) / rank_of(case)
    actual = case.measure(convention=preset)["nc1_vci"]
    # The subtraction leaves an absolute error of eps times the condition of what is inverted.
    tolerance = 8 * len(S_B) * EPS * min(condition, 1e12)
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=1e-12)


def exact_solve(matrix: list[list[Fraction]], right: list[list[Fraction]]) -> list[list[Fraction]]:
    """Gauss-Jordan elimination in rational numbers: no rounding, whatever the condition."""
    size = len(matrix)
    rows = [list(row) + list(extra) for row, extra in zip(matrix, right, strict=True)]
    for k in range(size):
        pivot = next(i for i in range(k, size) if rows[i][k] != 0)
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [x / rows[k][k] for x in rows[k]]
        for i in range(size):
            if i != k and rows[i][k] != 0:
                factor = rows[i][k]
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows]


def exact(array: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(float(x)) for x in row] for row in array]


def times(a, b):
    return [
        [sum(x * y for x, y in zip(r, c, strict=True)) for c in zip(*b, strict=True)] for r in a
    ]


def exact_scatters(rows, labels, C):
    h, d = exact(rows), rows.shape[1]
    mu = [
        [
            sum(h[i][j] for i in np.flatnonzero(labels == c)) / int((labels == c).sum())
            for j in range(d)
        ]
        for c in range(C)
    ]
    m = [sum(row[j] for row in mu) / C for j in range(d)]
    M = [[x - y for x, y in zip(row, m, strict=True)] for row in mu]
    R = [[x - y for x, y in zip(h[i], mu[c], strict=True)] for i, c in enumerate(labels)]
    S_W = [[x / len(h) for x in row] for row in times(list(zip(*R, strict=True)), R)]
    S_B = [[x / C for x in row] for row in times(list(zip(*M, strict=True)), M)]
    return M, S_W, S_B


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("std", [1e-2, 1e-6, 1e-9])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_nc1_near_collapse_equals_rational_arithmetic(std, offset, spread):
    rng = np.random.default_rng(11)
    C, d = 3, 4
    means = rng.normal(size=(C, d)) * np.geomspace(1, spread, d) + offset
    labels = np.arange(15) % C
    rows = means[labels] + rng.normal(size=(15, d)) * std
    M, S_W, S_B = exact_scatters(rows, labels, C)
    # With A the first C - 1 rows of M, a basis of its row space: M = T A, S_B = A' Q A with
    # Q = T'T/C, and S_B^+ = A' K^-1 Q^-1 K^-1 A with K = A A'.
    A = M[:-1]
    At = list(zip(*A, strict=True))
    K = times(A, At)
    Q = [[Fraction(int(i == j) + 1, C) for j in range(C - 1)] for i in range(C - 1)]
    inner = exact_solve(K, times(times(A, S_W), At))
    outer = exact_solve(Q, inner)
    pinv_trace = sum(
        row[i] for i, row in enumerate(exact_solve(K, [list(r) for r in zip(*outer, strict=True)]))
    )
    S_T = [[x + y for x, y in zip(a, b, strict=True)] for a, b in zip(S_B, S_W, strict=True)]
    share = exact_solve(S_T, S_B)
    vci = 1 - sum(row[i] for i, row in enumerate(share)) / (C - 1)

    report = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))
    np.testing.assert_allclose(report["nc1_pinv"], float(pinv_trace / C), rtol=1e-9)
    np.testing.assert_allclose(report["nc1_vci"], float(vci), rtol=1e-7)


def test_conventions_differ_as_the_papers_do():
    """Classes of 403 to 7 rows whose rare classes are the loosest: the four presets disagree."""
    rng = np.random.default_rng(5)
    C, counts = 10, np.geomspace(403, 7, 10).round().astype(int)
    labels = np.repeat(np.arange(C), counts)
    rows = rng.normal(size=(C, 24))[labels] + 0.5 * rng.normal(size=(len(labels), 24))
    m = cm.ClassMoments.from_batch(rows, labels, C)
    papyan, zhu, he_su, he_su_sample = (
        cm.measure(m, convention=name)["nc1_pinv"]
        for name in ("papyan2020", "zhu2021", "he_su2023", "he_su2023_imbalanced")
    )
    assert zhu < papyan < he_su < he_su_sample
    # he_su2023 is not C times zhu2021: it also weights S_W by class.
    assert abs(he_su / (C * zhu) - 1) > 1e-3
    # The switches one at a time: the centre; S_W by class; S_B by sample; the division.
    scaled = cm.Convention(center="sample", divide_by_classes=False)
    np.testing.assert_allclose(cm.measure(m, convention=scaled)["nc1_pinv"], C * zhu, rtol=1e-13)
    weighted = cm.Convention(center="sample", within="class")
    np.testing.assert_allclose(
        cm.measure(m, convention=weighted)["nc1_pinv"], he_su / C, rtol=1e-13
    )


def test_conventions_agree_up_to_c_on_balanced_data(make_case):
    case = make_case("balanced")
    values = {name: case.measure(convention=name)["nc1_pinv"] for name in cm.PRESETS}
    for name, value in values.items():
        factor = 1 if cm.PRESETS[name].divide_by_classes else case.C
        np.testing.assert_allclose(value, factor * values["papyan2020"], rtol=1e-12)


@pytest.mark.parametrize(("C", "d"), [(4, 9), (10, 9), (2, 3), (2, 1), (200, 256)])
def test_a_perfect_simplex_has_no_within_class_variability(C, d):
    rows = np.repeat(simplex_etf(C, d), 3, axis=0)
    report = cm.measure(cm.ClassMoments.from_batch(rows, np.repeat(np.arange(C), 3), C))
    for name in NC1[:4]:
        assert 0.0 <= report[name] <= 1e-12, name
    assert report.reason("nc1_vci") == "within_scatter_rank_deficient"


def test_float32_pseudo_inverse_would_lose_directions_that_float64_keeps():
    """Means with one direction at 0.5 % of the largest: a cut of d eps32 on S_B deletes it."""
    rng = np.random.default_rng(2)
    means = np.zeros((3, 512))
    means[0, 0], means[1, 0], means[2, 1] = 1.0, -1.0, 0.005
    labels = np.repeat(np.arange(3), 40)
    rows = means[labels] + 0.002 * rng.normal(size=(120, 512))
    m = cm.ClassMoments.from_batch(rows.astype(np.float32), labels, 3)
    S_B = np.cov(m.means.T, bias=True)
    cut = np.linalg.pinv(S_B, rcond=512 * np.finfo(np.float32).eps, hermitian=True)
    assert m.scatter is not None
    within = (m.scatter if m.scatter.ndim == 2 else m.scatter.sum(axis=0)) / m.rows
    report = cm.measure(m)
    assert report.provenance["between_rank"] == 2
    assert np.trace(within @ cut) / 3 < report["nc1_pinv"] / 10


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_nc1_is_invariant_to_permutation_rotation_scale_and_translation(seed, scale):
    rng = np.random.default_rng(seed)
    C, d = int(rng.integers(2, 6)), int(rng.integers(2, 8))
    labels = np.concatenate([np.arange(C), rng.integers(0, C, 30)])
    rows = 3 * rng.normal(size=(C, d))[labels] + rng.normal(size=(len(labels), d))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    order = rng.permutation(C)
    moved = scale * (rows @ turn + rng.normal(size=d))
    before = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))
    after = cm.measure(cm.ClassMoments.from_batch(moved, order[labels], C))
    smallest = before.provenance["between_smallest_kept"]
    for name in NC1:
        np.testing.assert_allclose(
            after[name], before[name], rtol=1e-12 / smallest**2, err_msg=name
        )


def test_trace_ratio_and_cdnv_depend_on_the_metric_of_feature_space_and_pinv_does_not():
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    rows = rng.normal(size=(3, 2))[labels] * 3 + rng.normal(size=(60, 2))
    stretch = np.array([[2.0, 0.3], [0.0, 0.5]])
    a, b = (cm.measure(cm.ClassMoments.from_batch(r, labels, 3)) for r in (rows, rows @ stretch))
    # With C - 1 = d, S_B is invertible and every linear map cancels in tr(S_W S_B^-1).
    np.testing.assert_allclose(a["nc1_pinv"], b["nc1_pinv"], rtol=1e-12)
    assert abs(a["nc1_trace_ratio"] / b["nc1_trace_ratio"] - 1) > 0.05
    assert abs(a["nc1_cdnv"] / b["nc1_cdnv"] - 1) > 0.05


def test_cdnv_in_tiles_equals_one_block(make_case, monkeypatch):
    case = make_case("zipf_tail")
    whole = case.measure()["nc1_cdnv"]
    monkeypatch.setattr(pairs, "TILE", 4)
    np.testing.assert_allclose(case.measure()["nc1_cdnv"], whole, rtol=1e-13)


def assert_no_vci(rows, labels, **options):
    moments = cm.ClassMoments.from_batch(rows, labels, int(max(labels)) + 1, **options)
    for preset in cm.PRESETS:
        report = cm.measure(moments, convention=preset)
        assert np.isnan(report["nc1_vci"])
        assert report.reason("nc1_vci") == "within_scatter_rank_deficient"
        assert report["nc1_trace_ratio"] >= 0


@pytest.mark.parametrize("ratio", [1.0, 1e3])
@pytest.mark.parametrize(("each", "d"), [(2, 30), (5, 30), (8, 100), (2, 600)])
def test_vci_of_fewer_rows_than_features_would_be_zero_whatever_the_noise(each, d, ratio):
    """S_W of N - C < d independent rows has not the rank that the differences of the means ask for."""
    rng = np.random.default_rng(each)
    labels = np.repeat(np.arange(5), each)
    rows = rng.normal(size=(5, d))[labels] + ratio * rng.normal(size=(len(labels), d))
    S_W, S_B = printed_scatters(rows, labels)
    zero = 1 - np.trace(np.linalg.pinv(S_B + S_W, rcond=1e-12, hermitian=True) @ S_B) / 4
    np.testing.assert_allclose(zero, 0, atol=1e-9)  # the formula, whatever the ratio
    assert_no_vci(rows, labels)
    assert_no_vci(rows.astype(np.float32), labels)
    halves = [cm.ClassMoments.from_batch(rows[i::2], labels[i::2], 5) for i in (0, 1)]
    assert (
        cm.measure(halves[0].merge(halves[1])).reason("nc1_vci") == "within_scatter_rank_deficient"
    )


def test_vci_when_within_class_scatter_misses_one_direction_of_the_means():
    """S_W lives on one axis, the means differ on two: the other would count as collapsed."""
    means, step = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 5.0]]), np.array([1.0, 0.0])
    assert_no_vci(np.concatenate([means + step, means - step]), np.tile(np.arange(3), 2))


@pytest.mark.parametrize("d", [6, 600])
@pytest.mark.parametrize("value", [0.0, 1e3])
def test_dead_units_leave_vci_as_it_is(d, value):
    """A feature that never changes is outside the ranges of both scatters; oblique ones alike."""
    rng = np.random.default_rng(d)
    labels = np.repeat(np.arange(3), 40)
    rows = rng.normal(size=(3, 4))[labels] + rng.normal(size=(120, 4))
    wide = np.concatenate([rows, np.full((120, d - 4), value)], axis=1)
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    moments = [cm.ClassMoments.from_batch(h, labels, 3) for h in (rows, wide, wide @ turn)]
    plain, dead, turned = (cm.measure(m)["nc1_vci"] for m in moments)
    assert plain > 0.01
    np.testing.assert_allclose([dead, turned], plain, rtol=1e-9)


def test_vci_is_defined_with_as_many_rows_as_it_needs():
    rng = np.random.default_rng(0)
    C, d = 3, 7
    for N, defined in ((C + d, True), (C + d - 1, False)):
        labels = np.arange(N) % C
        rows = rng.normal(size=(C, d))[labels] + rng.normal(size=(N, d))
        report = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))
        assert np.isfinite(report["nc1_vci"]) == defined


def test_nc1_of_all_rows_alike_within_classes_is_round_off(make_case):
    rows = np.repeat(np.random.default_rng(0).normal(size=(4, 6)), 7, axis=0)
    report = cm.measure(cm.ClassMoments.from_batch(rows, np.repeat(np.arange(4), 7), 4))
    assert max(report[name] for name in NC1[:4]) < 1e-28
    assert report.reason("nc1_vci") == "within_scatter_rank_deficient"


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_equal_class_means_are_undefined_also_when_round_off_separates_them(offset):
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 6))
    rows += offset - rows.mean(axis=0)
    both = np.concatenate([rows, rows[rng.permutation(50)]])
    report = cm.measure(cm.ClassMoments.from_batch(both, np.repeat([0, 1], 50), 2))
    for name in NC1:
        assert np.isnan(report[name])
        assert report.reason(name) == "no_between_class_scatter"


def test_two_coincident_class_means_leave_cdnv_undefined_and_the_rest_defined():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(50, 6))
    both = np.concatenate([rows, rows[rng.permutation(50)], rows + 4.0])
    report = cm.measure(cm.ClassMoments.from_batch(both, np.repeat([0, 1, 2], 50), 3))
    assert report.reason("nc1_cdnv") == "coincident_class_means"
    assert np.isnan(report["nc1_cdnv"])
    assert report["nc1_pinv"] > 0


def test_pooled_scatter_cannot_weight_classes_alike_unless_they_are_balanced(make_case):
    case = make_case("imbalanced")
    report = cm.measure(case.moments.coarsen("pooled"), convention="he_su2023")
    assert report.reason("nc1_pinv") == report.reason("nc1_fuzziness") == "needs_class_scatter"
    np.testing.assert_allclose(  # the printed formula weights rows: the scatter of all is enough
        cm.measure(case.moments.coarsen("pooled"))["nc1_fuzziness"],
        case.measure()["nc1_fuzziness"],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        cm.measure(case.moments.coarsen("pooled"))["nc1_pinv"],
        case.measure()["nc1_pinv"],
        rtol=1e-12,
    )
    balanced = make_case("balanced")
    np.testing.assert_allclose(
        cm.measure(balanced.moments.coarsen("pooled"))["nc1_fuzziness"],
        balanced.measure()["nc1_fuzziness"],
        rtol=1e-12,
    )


def test_traces_alone_give_what_needs_traces(make_case):
    case = make_case("imbalanced")
    report = cm.measure(case.moments.coarsen("trace"))
    for name in ("nc1_pinv", "nc1_fuzziness", "nc1_vci", "features_effective_rank"):
        assert report.reason(name) == "no_scatter"
    for name in ("nc1_trace_ratio", "nc1_cdnv"):
        np.testing.assert_allclose(report[name], case.measure()[name], rtol=1e-12)


@pytest.mark.parametrize("exponent", [0, 6, 11])
def test_the_collapse_index_is_that_of_the_axes_whichever_way_it_is_whitened(exponent):
    rng = np.random.default_rng(exponent)
    factor, spread = rng.normal(size=(3, 8)), np.logspace(0, -exponent, 8)
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    within = (axes * spread) @ axes.T
    factored = cholesky(within, 8)
    assert factored is not None
    by_cholesky = factored.triangle.solved(factor.T).T
    by_axes = nc1._whitened(factor, within, 8, 1e-8)
    found, expected = (np.linalg.svd(w, compute_uv=False) for w in (by_cholesky, by_axes))
    np.testing.assert_allclose(found, expected, rtol=8 * 2.3e-16 * 10**exponent)


@pytest.mark.parametrize("smallest", [0.0, 1e-17, 1e-15])
def test_a_within_class_covariance_without_digits_left_is_not_factored(smallest):
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    within = (axes * np.append(np.ones(7), smallest)) @ axes.T
    assert cholesky(within, 8) is None


@pytest.mark.parametrize("largest", [1e2, 1e6, 1e9])
@pytest.mark.parametrize("count", [5, 150])
def test_the_trace_of_an_inverse_keeps_its_digits_whatever_the_condition(count, largest):
    """Means apart by little in one direction and by much in another: I + W W' is badly conditioned."""
    rng = np.random.default_rng(count)
    values = np.geomspace(largest, 1e-2, count)
    left = np.linalg.qr(rng.normal(size=(count, count)))[0]
    right = np.linalg.qr(rng.normal(size=(300, count)))[0]
    whitened = (left * values) @ right.T
    expected = (1 / (1 + values**2)).sum()
    # The singular values are known to eps of the largest.
    error = 8 * count * EPS * largest
    trace = (1 / (1 + singular_values(whitened) ** 2)).sum()
    np.testing.assert_allclose(trace, expected, rtol=max(error, 1e-10))


def test_axes_in_which_variance_is_round_off_are_none():
    within, factor = np.diag([1e-18, 1.0, 2.0]), np.array([[0.0, 1.0, 1.0]])
    whitened = nc1._whitened(factor, within, 3, 1e-8)
    np.testing.assert_allclose(whitened, [[1.0, np.sqrt(0.5)]], rtol=1e-14)
    # Rounding may leave the largest variance of none below zero.
    for nothing in (np.zeros((3, 3)), np.diag([-3e-20, -2e-20, -1e-20])):
        with pytest.raises(ArithmeticError, match="in which no class varies"):
            nc1._whitened(factor, nothing, 3, 1e-8)
    assert nc1._whitened(np.full((1, 3), 1e-9), np.zeros((3, 3)), 3, 1e-8).shape == (1, 0)


def test_no_more_axes_vary_than_rows_can_tell():
    """What rounding leaves in the others is larger than that of a product of float64 where sums are float32."""
    within, factor = np.diag([1e-7, 1.0, 2.0]), np.eye(3)[:1]
    assert nc1._whitened(factor, within, 3, 1e-8).shape == (1, 3)
    with pytest.raises(ArithmeticError, match="in which no class varies"):
        nc1._whitened(factor, within, 2, 1e-8)


@pytest.mark.parametrize("d", [4, 120])
def test_a_scatter_of_more_rank_than_its_rows_have_is_rounding(d):
    """As sums in float32 leave it: S_W looks regular, and 3 of its directions at most are of the data."""
    means = np.random.default_rng(0).normal(size=(3, d))
    few, many = (
        cm.ClassMoments(np.full(3, n), means, np.eye(d), np.full(3, d / 3)) for n in (2, d)
    )
    assert cm.measure(few).reason("nc1_vci") == "within_scatter_rank_deficient"
    assert cm.measure(many)["nc1_vci"] > 0


@pytest.mark.parametrize("spread", [0.5, 1e-2, 1e-4, 1e-5])
def test_a_direction_that_is_only_rounding_counts_like_one_of_noise(spread):
    """Rows behind a LayerNorm have no scatter along the vector of ones but for what float32 rounds."""
    rng = np.random.default_rng(0)
    classes, width, rows = 5, 64, 2000
    labels = np.arange(rows) % classes
    h = 30 * (rng.normal(size=(classes, width))[labels] + spread * rng.normal(size=(rows, width)))
    h = h.astype(np.float32)
    h -= h.mean(1, keepdims=True)
    h /= h.std(1, keepdims=True)
    plane = np.linalg.qr(np.c_[np.ones(width), rng.normal(size=(width, width - 1))])[0][:, 1:]
    vci = [
        cm.measure(cm.ClassMoments.from_batch(features, labels, classes))["nc1_vci"]
        for features in (h, h.astype(np.float64) @ plane)
    ]
    np.testing.assert_allclose(vci[0], vci[1], rtol=2e-3)
