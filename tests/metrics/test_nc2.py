"""NC2 against double loops over pairs, exact frames, invariances, closed forms and tiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.metrics import pairs
from collapsemeter.metrics.frames import gram_distance, simplex_etf
from collapsemeter.metrics.layer_inputs import HeadRows

NC2 = (
    "nc2_equinorm", "nc2_equiangular", "nc2_max_angle", "nc2_etf_error",
    "gnc2_log_mean", "gnc2_log_var",
)  # fmt: skip


def oracle(M: np.ndarray) -> dict[str, float]:
    """Papyan et al. 2020, figures 2-4; Zhu et al. 2021; Liu et al. 2023: every pair in turn."""
    C = len(M)
    norms = [math.sqrt(sum(x * x for x in row)) for row in M]
    average = sum(norms) / C
    cosines, logs = [], []
    for a in range(C):
        for b in range(a + 1, C):
            cosines.append(float(M[a] @ M[b]) / (norms[a] * norms[b]))
            logs.append(-math.log(np.linalg.norm(M[a] / norms[a] - M[b] / norms[b])))
    G = M @ M.T
    P = (np.eye(C) - np.ones((C, C)) / C) / math.sqrt(C - 1)
    mean_cos, mean_log = sum(cosines) / len(cosines), sum(logs) / len(logs)
    return {
        "nc2_equinorm": math.sqrt(sum((n - average) ** 2 for n in norms) / (C - 1)) / average,
        "nc2_equiangular": math.sqrt(sum((c - mean_cos) ** 2 for c in cosines) / len(cosines)),
        "nc2_max_angle": sum(abs(c + 1 / (C - 1)) for c in cosines) / len(cosines),
        "nc2_etf_error": float(np.linalg.norm(G / np.linalg.norm(G) - P)),
        "gnc2_log_mean": mean_log,
        "gnc2_log_var": sum((x - mean_log) ** 2 for x in logs) / len(logs),
    }


def test_class_means(case, preset):
    M, report = case.M(preset), case.measure(convention=preset)
    if case.C == 2:
        assert_trivial(report, NC2)
        return
    # Every quantity is a smooth function of M / |M|, which brute force knows to eps |mu| / |M|.
    error = 64 * np.finfo(float).eps * np.abs(case.mu).max() / np.linalg.norm(M, axis=1).min()
    for name, expected in oracle(M).items():
        np.testing.assert_allclose(
            report[name], expected, rtol=1e-12, atol=max(error, 1e-14), err_msg=name
        )


def assert_trivial(report, names):
    for name in names:
        assert np.isnan(report[name]), name
        assert report.reason(name) == "two_classes_trivial", name


HEAD = tuple(f"{name}_head" for name in NC2[:4])


@pytest.mark.parametrize("center_head", [False, True])
def test_head(case, center_head):
    """The rows of W as they are, as the published code has it, or centred over classes."""
    W = case.W - case.W.sum(axis=0) / case.C if center_head else case.W
    report = case.measure(center_head=center_head)
    if case.C == 2:
        assert_trivial(report, HEAD if center_head else ["nc2_equiangular_head"])
    expected = oracle(W)
    for name in NC2[:4]:
        if not report.reason(name + "_head"):
            np.testing.assert_allclose(
                report[name + "_head"], expected[name], rtol=1e-11, atol=1e-14
            )
    assert report.provenance["convention"]["center_head"] is center_head


def published(W: np.ndarray) -> dict[str, float]:
    """What Papyan's notebook and Zhu's ``compute_ETF`` compute of a head, step by step as they do."""
    C, transposed = len(W), W.T
    norms = np.linalg.norm(transposed, axis=0)
    units = transposed / norms
    coherence = units.T @ units + np.ones((C, C)) / (C - 1)
    coherence -= np.diag(np.diag(coherence))
    product = W @ W.T
    product /= np.linalg.norm(product, "fro")
    target = (np.eye(C) - 1 / C * np.ones((C, C))) / math.sqrt(C - 1)
    return {
        "nc2_equinorm_head": norms.std(ddof=1) / norms.mean(),
        "nc2_max_angle_head": np.abs(coherence).sum() / (C * (C - 1)),
        "nc2_etf_error_head": np.linalg.norm(product - target, "fro"),
    }


@pytest.mark.parametrize(("C", "d"), [(5, 12), (12, 5), (2, 6), (300, 64)])
def test_a_head_that_is_not_centred_is_measured_as_the_published_code_does(C, d):
    rng = np.random.default_rng(C)
    W = rng.normal(size=(C, d)) + 0.7 * rng.normal(size=d)
    m = cm.ClassMoments.from_batch(rng.normal(size=(3 * C, d)), np.arange(3 * C) % C, C)
    found, centred = (
        cm.measure(m, head=cm.Head(W), center_head=center) for center in (False, True)
    )
    for name, expected in published(W).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-10, err_msg=name)
        assert not abs(centred[name] - expected) < 0.02 * expected, name


@pytest.mark.parametrize("counts", [(20, 20), (33, 7)])
def test_two_centred_classes_are_trivial_and_the_text_points_at_what_tells(counts, preset):
    """About m all is 0 for any data; about g a function of the two counts alone."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    for head in (cm.Head(rng.normal(size=(2, 6))), cm.Head.from_single_logit(rng.normal(size=6))):
        rows = rng.normal(size=(2, 6))[labels] + rng.normal(size=(40, 6))
        m = cm.ClassMoments.from_batch(rows, labels, 2)
        plain, centred = (
            cm.measure(m, head=head, convention=preset, center_head=center)
            for center in (False, True)
        )
        assert_trivial(plain, [*NC2, "nc2_equiangular_head"])
        assert_trivial(centred, [*NC2, *HEAD, "nc3_etf_error", "nc3_uniform"])
        for name in ("nc2_of_error", "nc3_self_duality", "nc3_cosine", "nc3_bias", "nc1_pinv"):
            assert math.isfinite(plain[name]), name
            assert math.isfinite(centred[name]), name
        of_two_rows = [*HEAD[:1], *HEAD[2:], "nc3_etf_error", "nc3_uniform"]
        if head.weight[0] @ head.weight[1] == -head.weight[0] @ head.weight[0]:  # a single logit's
            assert_trivial(plain, of_two_rows)
        else:
            assert all(math.isfinite(plain[name]) for name in of_two_rows)
    assert "nc2_of_error" in cm.REASONS["two_classes_trivial"]


@pytest.mark.parametrize("offset", [1e-9, 1.0, 1e6, 1e12])
def test_two_head_rows_are_opposite_once_centred_under_any_offset(offset):
    """Rounding of the offset must not look like a distance from a simplex ETF."""
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    m = cm.ClassMoments.from_batch(rng.normal(size=(20, 3)), labels, 2)
    head = cm.Head(rng.normal(size=(2, 3)) + offset)
    report = cm.measure(m, head=head, center_head=True)
    assert_trivial(report, [*HEAD, "nc3_etf_error", "nc3_uniform"])
    assert report["nc3_self_duality"] > 0


def test_two_classes_present_of_ten_are_two_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat([3, 8], 20)
    m = cm.ClassMoments.from_batch(rng.normal(size=(40, 6)) + labels[:, None], labels, 10)
    report = cm.measure(m, head=cm.Head(rng.normal(size=(10, 6))))
    assert_trivial(report, [*NC2, "nc2_equiangular_head"])
    assert report["nc2_equinorm_head"] > 0


def test_orthogonal_frame_error_and_condition_of_uncentred_means(case):
    G = case.mu @ case.mu.T
    expected = np.linalg.norm(G / np.linalg.norm(G) - np.eye(case.C) / math.sqrt(case.C))
    report = case.measure()
    np.testing.assert_allclose(report["nc2_of_error"], expected, rtol=1e-11)


@pytest.mark.parametrize(("C", "d"), [(5, 12), (13, 12), (3, 2), (200, 199), (200, 300)])
def test_a_simplex_etf_is_at_zero(C, d):
    turn, _ = np.linalg.qr(np.random.default_rng(C).normal(size=(d, d)))
    rows = np.repeat(3.0 * simplex_etf(C, d) @ turn + 0.25, 2, axis=0)
    frame = 0.1 * simplex_etf(C, d) @ turn
    report = cm.measure(
        cm.ClassMoments.from_batch(rows, np.repeat(np.arange(C), 2), C), head=cm.Head(frame)
    )
    for name in ("nc2_equinorm", "nc2_equiangular", "nc2_max_angle", "nc2_etf_error"):
        assert 0.0 <= report[name] <= 1e-12, name
        assert 0.0 <= report[name + "_head"] <= 1e-12, name
    side = math.sqrt(2 * C / (C - 1))  # of the simplex, in units of its circumradius
    np.testing.assert_allclose(report["gnc2_log_mean"], -math.log(side), rtol=0, atol=1e-12)
    assert report["gnc2_log_var"] <= 1e-24
    assert "etf_infeasible" not in report.flags


def test_an_orthogonal_frame_is_at_zero_of_its_own_target_and_not_of_the_simplex_uncentred():
    rows = np.repeat(4.0 * np.eye(6, 9), 2, axis=0)
    report = cm.measure(cm.ClassMoments.from_batch(rows, np.repeat(np.arange(6), 2), 6))
    assert report["nc2_of_error"] <= 1e-12
    assert abs(report["means_condition"] - 1) <= 1e-12
    assert report["nc2_etf_error"] <= 1e-12  # an orthogonal frame centred is a simplex ETF


def test_more_than_d_plus_one_classes_are_flagged_and_measured(make_case):
    report = make_case("more_classes_than_features").measure()
    assert "etf_infeasible" in report.flags
    assert 0 < report["nc2_etf_error"] < 2


@pytest.mark.parametrize("C", [8, 9, 40])
def test_closed_forms_for_many_classes_equal_the_gram_matrix(C):
    rng = np.random.default_rng(C)
    A, B, d = rng.normal(size=(C, 6)), rng.normal(size=(C, 6)), 6
    assert d + 1 < C
    P = (np.eye(C) - 1 / C) / math.sqrt(C - 1)
    for a, b in ((A, A), (A, B), (A - A.mean(axis=0), B)):
        G = a @ b.T
        for target, T in (("simplex", P), ("orthogonal", np.eye(C) / math.sqrt(C))):
            direct = np.linalg.norm(G / np.linalg.norm(G) - T)
            # 2 - 2 <G, T> / |G| subtracts: eps times 2 / direct^2, for sums of C d terms.
            tolerance = 8 * math.sqrt(C * d) * np.finfo(float).eps / direct**2
            np.testing.assert_allclose(gram_distance(a, b, target), direct, rtol=tolerance)


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_invariances(seed, scale):
    rng = np.random.default_rng(seed)
    C, d = int(rng.integers(3, 7)), int(rng.integers(2, 8))
    means = rng.normal(size=(C, d))
    labels = np.arange(3 * C) % C
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    order = rng.permutation(C)
    moved = scale * (means @ turn + rng.normal(size=d))
    before = cm.measure(cm.ClassMoments.from_batch(means[labels], labels, C))
    after = cm.measure(cm.ClassMoments.from_batch(moved[labels], order[labels], C))
    # Near a mean on the centre, or two in one direction, the angles are lost in eps / distance.
    M = means - means.mean(axis=0)
    units = M / np.linalg.norm(M, axis=1, keepdims=True)
    gap = min(np.linalg.norm(units[a] - units[b]) for a in range(C) for b in range(a))
    margin = min(gap, 1.0) * np.linalg.norm(M, axis=1).min() / np.linalg.norm(M)
    for name in NC2:
        np.testing.assert_allclose(
            after[name], before[name], rtol=0, atol=1e-13 / margin, err_msg=name
        )


def test_uncentred_metrics_are_not_invariant_to_translation(make_case):
    case = make_case("balanced")
    moved = cm.ClassMoments.from_batch(case.features + 5.0, case.labels, case.C)
    for name in ("nc2_of_error", "means_condition"):
        assert abs(cm.measure(moved)[name] / case.measure()[name] - 1) > 0.1


def test_tiles_equal_one_block(make_case, monkeypatch):
    case = make_case("zipf_tail")
    whole = case.measure()
    monkeypatch.setattr(pairs, "TILE", 7)
    tiled = case.measure()
    for name in whole:
        np.testing.assert_allclose(tiled[name], whole[name], rtol=1e-12, atol=1e-15, err_msg=name)
    np.testing.assert_allclose(
        tiled.per_class["worst_cosine"], whole.per_class["worst_cosine"], rtol=1e-13
    )


def test_a_mean_on_the_centre_has_no_angles():
    rows = np.array([[-1.0, 0], [0, 0], [1, 0]])
    report = cm.measure(cm.ClassMoments.from_batch(rows, [0, 1, 2], 3))
    for name in ("nc2_equiangular", "nc2_max_angle", "gnc2_log_mean", "gnc2_log_var"):
        assert np.isnan(report[name])
        assert report.reason(name) == "class_mean_at_centre"
    assert report["nc2_equinorm"] > 0
    assert report["nc2_etf_error"] > 0


def test_coincident_directions_leave_log_distances_undefined():
    rows = np.array([[1.0, 0.1], [2.0, 0.2], [-3.0, -0.3]])
    report = cm.measure(cm.ClassMoments.from_batch(rows, [0, 1, 2], 3))
    for name in ("gnc2_log_mean", "gnc2_log_var"):
        assert np.isnan(report[name])
        assert report.reason(name) == "coincident_directions"
    np.testing.assert_allclose(report.per_class["worst_cosine"], [1, 1, -1], atol=1e-15)


@pytest.mark.parametrize(
    ("weight", "center_head"), [(np.zeros((3, 4)), False), (np.full((3, 4), 0.1), True)]
)
def test_a_head_of_zero_rows_has_no_frame(weight, center_head):
    labels = np.arange(9) % 3
    rows = np.random.default_rng(0).normal(size=(9, 4))
    m = cm.ClassMoments.from_batch(rows, labels, 3)
    report = cm.measure(m, head=cm.Head(weight), center_head=center_head)
    for name in NC2[:4]:
        assert np.isnan(report[name + "_head"])
        assert report.reason(name + "_head") == "zero_head"


def test_a_head_row_of_zeros_has_no_angles():
    head = cm.Head(np.array([[-1.0, 0], [0, 0], [1, 0]]))
    with pytest.raises(ArithmeticError, match="a row of the head's weight is zero"):
        _ = HeadRows(head, np.arange(3)).pairs
    with pytest.raises(ArithmeticError, match="only one class is present"):
        _ = HeadRows(head, np.arange(1)).norms


def test_a_product_of_zeros_has_no_distance():
    assert np.isnan(gram_distance(np.zeros((2, 2)), np.eye(2), "orthogonal"))
    assert np.isnan(gram_distance(np.zeros((5, 2)), np.ones((5, 2)), "simplex"))
