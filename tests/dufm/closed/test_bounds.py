"""No network goes below the lower bound."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsemeter.dufm import DUFM, ell, lower_bound, nuclear_bound, ufm_ce
from collapsemeter.dufm.descent import lbfgs
from collapsemeter.dufm.seeds import random_start


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 4),
    st.integers(1, 4),
    st.sampled_from(["mse", "ce"]),
    st.booleans(),
    st.floats(-3.5, 0.5),
)
def test_descent_ends_above_the_bounds(seed, classes, depth, loss, bias, exponent):
    rng = np.random.default_rng(seed)
    problem = DUFM(
        classes, rng.integers(1, 5, classes).tolist(), depth, 6, feature_decay=10**exponent,
        weight_decay=10**exponent, loss=loss, bias=bias,
    )  # fmt: skip
    actual = lbfgs(problem, random_start(problem, rng), 100)[0]
    rounding = 1e-12
    assert nuclear_bound(problem) <= lower_bound(problem) + 1e-7
    assert lower_bound(problem) <= actual + rounding


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("depth", [2, 4])
def test_the_bound_of_deep_networks(classes, depth):
    problem = DUFM(classes, 2, depth, feature_decay=1e-3, weight_decay=1e-3)
    expected = ell(problem.canonical_decay * classes ** (2 / (depth + 1)), depth)
    assert lower_bound(problem) == expected


def test_the_bound_is_tight_for_one_layer():
    squared = DUFM(5, 2, 1, feature_decay=1e-3, weight_decay=1e-3)
    np.testing.assert_allclose(nuclear_bound(squared), squared.optimum().loss, rtol=1e-12)
    centred = DUFM(5, 2, 1, feature_decay=1e-3, weight_decay=1e-3, bias=True)
    np.testing.assert_allclose(nuclear_bound(centred), centred.optimum().loss, rtol=1e-12)
    entropy = DUFM(5, 2, 1, feature_decay=1e-3, weight_decay=1e-3, loss="ce")
    np.testing.assert_allclose(nuclear_bound(entropy), ufm_ce(entropy).loss, rtol=1e-12)


def test_linear_bounds_are_the_optimum_and_relu_ones_are_not_linear():
    deep = {"num_classes": 10, "per_class": 1, "depth": 4}
    relu = DUFM(**deep, feature_decay=0.002, weight_decay=0.002)
    linear = DUFM(**deep, feature_decay=0.002, weight_decay=0.002, activation="linear")
    np.testing.assert_allclose(lower_bound(linear), linear.optimum().loss, rtol=1e-14)
    # The low-rank ReLU network beats the deep linear optimum: it is no bound for it.
    assert relu.optimum().loss < linear.optimum().loss
    biased = DUFM(**deep, feature_decay=2e-3, weight_decay=2e-3, activation="linear", bias=True)
    np.testing.assert_allclose(lower_bound(biased), biased.optimum().loss, rtol=1e-14)


def test_two_classes_have_their_theorem_as_bound():
    problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    np.testing.assert_allclose(lower_bound(problem), 0.070487054295, atol=1e-12)
