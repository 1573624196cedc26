"""Ranks, condition and DNC3 against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.metrics import depth, pairs


def entropy_rank(values) -> float:
    """Roy & Vetterli 2007, one value at a time."""
    total = sum(values)
    return math.exp(-sum(x / total * math.log(x / total) for x in values if x > 0))


def test_ranks_of_the_class_means(case, preset):
    s = np.linalg.svd(case.M(preset), compute_uv=False)
    report = case.measure(convention=preset)
    np.testing.assert_allclose(report["means_effective_rank"], entropy_rank(s), rtol=1e-10)
    stable = np.linalg.norm(case.M(preset)) ** 2 / s[0] ** 2
    np.testing.assert_allclose(report["means_stable_rank"], stable, rtol=1e-11)
    # Singular values are known to eps s_1, and brute force takes the means to eps |mu|.
    error = 64 * np.finfo(float).eps * np.abs(case.mu).max() * math.sqrt(case.mu.size)
    np.testing.assert_allclose(report.vectors["means_singular_values"], s, rtol=0, atol=error)
    uncentred = np.linalg.svd(case.mu, compute_uv=False)
    np.testing.assert_allclose(
        report.vectors["means_singular_values_uncentred"], uncentred, rtol=0, atol=error
    )


def test_effective_rank_of_the_features(case, preset):
    M = case.M(preset)
    values = np.linalg.eigvalsh(case.S_W() + M.T @ M / len(M))  # the weights are no choice here
    values = values[values > values[-1] * len(values) * np.finfo(float).eps]
    # An eigenvalue that is round-off adds x log x of it: d times 1e-15 times 35.
    np.testing.assert_allclose(
        case.measure(convention=preset)["features_effective_rank"], entropy_rank(values), rtol=1e-11
    )


def test_condition_of_the_uncentred_means(case):
    s = np.linalg.svd(case.mu, compute_uv=False)
    report = case.measure()
    if len(case.mu) > case.mu.shape[1]:
        assert report.reason("means_condition") == "rank_deficient_means"
        assert np.isnan(report["means_condition"])
    else:
        error = 64 * case.C * np.finfo(float).eps * s[0] / s[-1]
        np.testing.assert_allclose(report["means_condition"], s[0] / s[-1], rtol=error)


def test_dependent_means_have_no_condition():
    rows = np.array([[1.0, 2.0], [2.0, 4.0]])
    report = cm.measure(cm.ClassMoments.from_batch(rows, [0, 1], 2))
    assert report.reason("means_condition") == "rank_deficient_means"


def test_dnc3_is_the_weighted_sine_to_the_closest_mean(case):
    total = weight = 0.0
    for w in case.W:
        cosines = [w @ m / np.linalg.norm(w) / np.linalg.norm(m) for m in case.mu]
        cosine = max(cosines)
        # An angle beyond a right one counts as a right one.
        sine = math.sqrt(max(1 - cosine**2, 0.0)) if cosine > 0 else 1.0
        total, weight = total + np.linalg.norm(w) * sine, weight + np.linalg.norm(w)
    np.testing.assert_allclose(case.measure()["dnc3_sine"], total / weight, rtol=1e-10)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-9, 1e-3, 1.0, math.pi / 2])
def test_dnc3_keeps_its_digits_near_collapse(angle):
    weight = np.array([[3 * math.cos(angle), 3 * math.sin(angle), 0.0], [0.0, 0.0, 0.0]])
    means = np.array([[7.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    np.testing.assert_allclose(
        depth.mean_sine(weight, means), math.sin(angle), rtol=1e-12, atol=1e-30
    )


def test_dnc3_of_a_matrix_that_the_layer_feeds(make_case):
    case = make_case("balanced")
    weight = np.concatenate([2 * case.mu, 0 * case.mu, case.mu[:1]])
    assert cm.measure(case.moments, weight=weight)["dnc3_sine"] < 1e-12
    assert cm.measure(case.moments, weight=-weight)["dnc3_sine"] > 0.1
    # It takes the place of the head's.
    report = cm.measure(case.moments, weight=weight, head=cm.Head(case.W))
    assert report["dnc3_sine"] < 1e-12
    assert cm.measure(case.moments).reason("dnc3_sine") == "no_head"


def test_dnc3_without_directions():
    m = cm.ClassMoments.from_batch([[0.0, 0.0], [1.0, 0.0]], [0, 1], 2)
    assert cm.measure(m, weight=np.eye(2)).reason("dnc3_sine") == "zero_class_mean"
    m = cm.ClassMoments.from_batch(np.eye(2), [0, 1], 2)
    assert cm.measure(m, weight=np.zeros((3, 2))).reason("dnc3_sine") == "zero_head"
    assert cm.measure(m, weight=[[np.nan, 1.0]]).reason("dnc3_sine") == "nonfinite_head"


@pytest.mark.parametrize("tile", [3, 7, 2048])
@pytest.mark.parametrize("many", [1, 10**9])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("gap", [1.0, 1e-4, 1e-6])
def test_the_closest_mean_is_found_where_float32_cannot_tell(tile, many, offset, gap, monkeypatch):
    """Means in pairs an angle apart whose cosine float64 tells from 1, and rows along one of each."""
    monkeypatch.setattr(pairs, "TILE", tile)
    monkeypatch.setattr(pairs, "MANY", many)
    rng = np.random.default_rng(3)
    means = np.repeat(rng.normal(size=(20, 6)), 2, axis=0) + offset
    means[1::2] += gap * (1 + offset) * rng.normal(size=(20, 6))
    weight = means[rng.permutation(40)] * rng.uniform(0.5, 2, size=(40, 1))
    # A sine of rounding only: d eps of the norms.
    assert depth.mean_sine(weight, means) < 64 * np.finfo(float).eps
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    rows = rng.normal(size=(50, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    closest = pairs.closest_units(rows, units)
    products = rows @ units.T
    lost = products.max(axis=1) - products[np.arange(50), closest]
    assert lost.max() <= 8 * np.finfo(float).eps


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_ranks_are_invariant_to_rotation_and_scale(seed, scale):
    rng = np.random.default_rng(seed)
    C, d = int(rng.integers(2, 6)), int(rng.integers(2, 8))
    labels = np.arange(5 * C) % C
    rows = rng.normal(size=(5 * C, d))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    order = rng.permutation(C)
    a = cm.measure(cm.ClassMoments.from_batch(rows, labels, C))
    b = cm.measure(cm.ClassMoments.from_batch(scale * rows @ turn, order[labels], C))
    for name in ("means_effective_rank", "means_stable_rank", "features_effective_rank"):
        np.testing.assert_allclose(b[name], a[name], rtol=1e-10)
        assert 1 - 1e-12 <= a[name] <= d + 1e-9
    if d >= C:
        np.testing.assert_allclose(
            b["means_condition"], a["means_condition"], rtol=1e-13 * a["means_condition"] + 1e-12
        )


def test_one_class_has_features_but_no_means_to_compare():
    rows = np.random.default_rng(0).normal(size=(20, 3))
    report = cm.measure(cm.ClassMoments.from_batch(rows, np.zeros(20, int), 1), weight=np.eye(3))
    assert 1 < report["features_effective_rank"] <= 3
    for name in ("means_effective_rank", "means_stable_rank", "means_condition", "dnc3_sine"):
        assert np.isnan(report[name])
        assert report.reason(name) == "one_class"


@pytest.mark.parametrize("rows", [np.zeros((4, 3)), np.full((4, 3), 2.5)])
def test_features_that_are_all_alike_have_no_rank(rows):
    report = cm.measure(cm.ClassMoments.from_batch(rows, [0, 0, 1, 1], 2))
    assert np.isnan(report["features_effective_rank"])
    assert report.reason("features_effective_rank") == "no_between_class_scatter"


def test_weights_of_a_balanced_linear_network_balance():
    rng = np.random.default_rng(0)
    left, values, right = np.linalg.svd(rng.standard_normal((5, 4)), full_matrices=False)
    incoming = np.sqrt(values)[:, None] * right
    outgoing = left * np.sqrt(values)
    moments = cm.ClassMoments.from_batch(np.eye(4), np.arange(4), 4)

    def balance(weight, decays=(1.0, 1.0)):
        layer = cm.measure(moments, weight=weight, incoming=incoming, decays=decays)
        return layer["weight_balance"]

    assert balance(outgoing) < 1e-15
    assert balance(2 * outgoing, (4.0, 1.0)) < 1e-15
    assert balance(2 * outgoing) == pytest.approx(3 / 5)
    assert balance(0 * outgoing) == 1.0


def test_weight_balance_is_measured_when_asked_for():
    moments = cm.ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3)
    with_head = cm.measure(moments, head=cm.Head(np.eye(3)), incoming=np.eye(3))
    assert with_head["weight_balance"] == 0.0
    layer = cm.measure(moments, weight=np.eye(3), incoming=2 * np.eye(3), decays=(1.0, 4.0))
    assert layer["weight_balance"] == 0.0
    absent = cm.measure(moments, weight=np.eye(3))
    assert "weight_balance" not in absent
    assert absent.reason("weight_balance") == "no_incoming"
    zero = cm.measure(moments, weight=np.zeros((2, 3)), incoming=np.zeros((3, 2)))
    assert zero.reason("weight_balance") == "zero_weights"
    broken = cm.measure(moments, weight=np.full((2, 3), np.nan), incoming=np.eye(3))
    assert broken.reason("weight_balance") == "nonfinite_head"


def test_weights_that_do_not_fit_are_refused():
    moments = cm.ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"incoming has shape \(2, 3\), the layer has 3 features"):
        cm.measure(moments, incoming=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"decays=\(1.0, 0.0\): pass two positive numbers"):
        cm.measure(moments, decays=(1.0, 0.0))
