"""One layer with unequal classes: the convex optimum and its certificate."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsemeter.dufm import (
    DUFM,
    certify,
    convex,
    gof,
    loss_and_gradient,
    lower_bound,
    seli,
    seli_grams,
    ufm_ce,
    ufm_mse,
)


def skewed(counts, decay, **more):
    return DUFM(len(counts), counts, 1, feature_decay=decay, weight_decay=decay, **more)


@pytest.mark.parametrize("bias", [{}, {"bias": True}, {"bias": True, "bias_decay": 0.05}])
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_it_finds_the_closed_form_of_balanced_classes(loss, bias):
    problem = DUFM(4, 3, 1, feature_decay=0.02, weight_decay=0.01, loss=loss, **bias)
    known = (ufm_mse if loss == "mse" else ufm_ce)(problem)
    actual = convex(problem)
    assert actual.status == "theorem"
    np.testing.assert_allclose(actual.loss, known.loss, rtol=1e-9)
    np.testing.assert_allclose(actual.gram(2), known.gram(2), atol=1e-5)


def test_it_finds_the_general_orthogonal_frame():
    problem = skewed([9, 3, 1], 0.01)
    np.testing.assert_allclose(convex(problem).loss, gof(problem).loss, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=5),
    st.floats(-4, -2.3),
    st.sampled_from(["mse", "ce"]),
    st.sampled_from([{}, {"bias": True}, {"bias": True, "bias_decay": 0.1}]),
)
def test_the_certificate_closes_for_any_class_sizes(counts, exponent, loss, bias):
    problem = skewed(counts, 10**exponent, loss=loss, **bias)
    best = convex(problem)
    assert best.status == "theorem"
    np.testing.assert_allclose(best.parameters["operator_ratio"], 1.0, atol=1e-6)
    assert abs(loss_and_gradient(problem, best.samples())[0] - best.loss) < 1e-12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["mse", "ce"]))
def test_the_dual_never_exceeds_any_primal(seed, loss):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, 3).tolist()
    problem = skewed(counts, 0.02, loss=loss, bias=True, bias_decay=0.2)
    first = certify(problem, rng.standard_normal((3, 3)), rng.standard_normal(3))
    second = certify(problem, rng.standard_normal((3, 3)), rng.standard_normal(3))
    assert max(first.lower, second.lower) <= min(first.loss, second.loss)


def test_a_minority_merges_under_strong_decay():
    problem = skewed([200, 200, 1, 1], 4e-3, loss="ce")
    means = convex(problem).class_means(1)
    assert np.linalg.norm(means[2] - means[3]) < 1e-6
    assert np.linalg.norm(means[0] - means[1]) > 0.1


@pytest.mark.parametrize("counts", [[20, 5, 2], [7, 7, 1, 1], [50, 3, 1]])
def test_simplex_encoded_labels_are_the_limit_of_weak_decay(counts):
    ratios, cosines = [], []
    for decay in (1e-3, 1e-5, 1e-7):
        problem = skewed(counts, decay, loss="ce")
        best, limit = convex(problem), seli(problem)
        ratios.append(limit.loss / best.loss - 1)
        actual, expected = best.gram(1), seli_grams(np.array(counts))[1]
        cosines.append(
            np.sum(actual * expected) / np.linalg.norm(actual) / np.linalg.norm(expected)
        )
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] >= -1e-9
    assert cosines == sorted(cosines)
    assert cosines[-1] > 0.99


@pytest.mark.parametrize("counts", [[50, 1], [3, 2]])
def test_simplex_encoded_labels_are_exact_for_two_classes(counts):
    problem = skewed(counts, 0.01, loss="ce")
    np.testing.assert_allclose(seli(problem).loss, convex(problem).loss, rtol=1e-9)


def test_simplex_encoded_grams_are_those_of_the_svd():
    counts = np.array([9.0, 4.0, 2.0, 1.0])
    centred = np.eye(4) - 0.25
    left, values, right = np.linalg.svd(centred @ np.diag(np.sqrt(counts)))
    classifier, means = seli_grams(counts)
    np.testing.assert_allclose(classifier, (left * values) @ left.T, atol=1e-12)
    features = np.sqrt(values)[:, None] * right / np.sqrt(counts)
    features[-1] = 0
    np.testing.assert_allclose(means, features.T @ features, atol=1e-7)


def test_the_bound_of_one_layer_is_the_dual():
    problem = skewed([5, 3, 1], 0.01, loss="ce")
    best = convex(problem)
    np.testing.assert_allclose(lower_bound(problem), best.parameters["lower"], rtol=0)


def test_an_open_gap_is_not_called_a_theorem(monkeypatch):
    module = importlib.import_module("collapsemeter.dufm.closed.one_layer")
    monkeypatch.setattr(module, "GAP_TOLERANCE", -1.0)
    best = convex(skewed([5, 3, 1], 0.011, loss="ce"))
    assert best.status == "upper bound"
    assert "did not close" in best.holds_for


def test_a_layer_too_narrow_for_the_optimum_is_refused():
    with pytest.raises(ValueError, match=r"convex needs widths \(2,\), got \(1,\): widen"):
        convex(skewed([5, 3, 1], 0.001, loss="ce", widths=1))
