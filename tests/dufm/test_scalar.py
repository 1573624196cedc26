"""The scalar problem, against brute force over its definition."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter.dufm import collapse_threshold, critical_strength, ell, ell_minimiser
from collapsemeter.dufm.scalar import least_margin_loss

# A grid of spacing h misses a smooth minimum by about h^2 / 2 times the curvature, below 10.
GRID = np.linspace(0.0, 1.0, 200_001)
GRID_ERROR = 10 * GRID[1] ** 2


def brute_ell(g, depth):
    return float(np.min((1 - GRID) ** 2 / 2 + (depth + 1) / 2 * g * GRID ** (2 / (depth + 1))))


@pytest.mark.parametrize("depth", range(1, 8))
@pytest.mark.parametrize("g", [0.0, 1e-6, 0.01, 0.1, 0.14, 0.2, 0.39, 0.9, 1.1])
def test_ell_is_the_minimum_of_its_definition(depth, g):
    assert ell(g, depth) <= brute_ell(g, depth) + 1e-15
    np.testing.assert_allclose(ell(g, depth), brute_ell(g, depth), atol=GRID_ERROR)


@given(st.floats(0, 2), st.floats(0, 2), st.integers(1, 8))
def test_ell_grows_with_the_strength_and_is_concave(a, b, depth):
    low, high = sorted((a, b))
    rounding = 1e-15
    assert ell(low, depth) <= ell(high, depth) + rounding
    assert ell((a + b) / 2, depth) >= (ell(a, depth) + ell(b, depth)) / 2 - rounding


@given(st.floats(1e-12, 0.1), st.integers(2, 8))
def test_the_minimiser_solves_the_stationarity_equation(g, depth):
    t = ell_minimiser(g, depth)
    miss = 1 - t
    # Subtracting t from 1 leaves an absolute error of half a unit in the last place.
    np.testing.assert_allclose(miss * t ** ((depth - 1) / (depth + 1)), g, atol=2.3e-16, rtol=1e-14)
    rounding = 2.3e-16 * (1 + depth) / 2
    np.testing.assert_allclose(ell(g, depth), miss * (1 + depth * t) / 2, atol=rounding, rtol=1e-14)


@pytest.mark.parametrize(
    ("depth", "value"),
    list(enumerate([1, 0.3968503, 0.2721655, 0.2103666, 0.1723548, 0.1463156], start=1)),
)
def test_critical_strength_has_the_published_values(depth, value):
    np.testing.assert_allclose(critical_strength(depth), value, atol=5e-8)


@pytest.mark.parametrize("depth", range(2, 9))
def test_the_fit_jumps_to_zero_at_the_critical_strength(depth):
    g = critical_strength(depth)
    np.testing.assert_allclose(ell_minimiser(g * (1 - 1e-9), depth), (depth - 1) / depth, atol=1e-7)
    assert ell_minimiser(g * (1 + 1e-9), depth) == 0.0
    # Brute force agrees on both sides: the loss touches 1/2 exactly there.
    assert brute_ell(g * (1 - 1e-6), depth) < 0.5
    assert brute_ell(g * (1 + 1e-6), depth) == 0.5


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_collapse_threshold_is_where_the_strength_is_critical(depth, classes):
    c = collapse_threshold(classes, depth) ** (1 / (depth + 1))
    np.testing.assert_allclose(classes * c, critical_strength(depth), rtol=1e-14)


def test_the_binary_threshold_has_the_form_of_the_theorem():
    for depth in range(2, 7):
        published = (depth - 1) ** (depth - 1) / (2 ** (depth + 1) * depth ** (2 * depth))
        np.testing.assert_allclose(collapse_threshold(2, depth), published, rtol=1e-15)
    assert collapse_threshold(2, 1) == 0.25


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("strength", [1e-5, 1e-3, 0.02, 0.3, 5.0])
def test_margin_minimisation_against_a_grid(depth, strength):
    margin, loss = least_margin_loss(((1.0, 2.0), (4.0, 1.0)), strength, depth)
    grid = np.concatenate([[0.0], np.geomspace(1e-4, 60, 400_000)])
    values = np.log1p(np.exp(-2 * grid) + 4 * np.exp(-grid))
    values += (depth + 1) / 2 * strength * grid ** (2 / (depth + 1))
    np.testing.assert_allclose(loss, values.min(), atol=1e-8)
    assert loss <= values.min() + 1e-15
    assert margin == 0.0 or abs(margin - grid[values.argmin()]) < 1e-2


def test_a_margin_that_no_decay_bounds_is_refused_as_zero():
    assert least_margin_loss(((1.0, 1.0),), 0.0, 2) == (0.0, math.log(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ell(0.1, 0), "depth must be at least 1, got 0: count the weight matrices."),
        (lambda: critical_strength(-1), "depth must be at least 1, got -1"),
        (lambda: ell(-0.1, 2), "strength must not be negative, got -0.1: pass decays above 0."),
        (lambda: ell(float("nan"), 2), "strength must not be negative, got nan"),
        (lambda: collapse_threshold(1, 2), "num_classes must be at least 2, got 1: pass more"),
    ],
)
def test_bad_arguments_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
