"""Stationarity: zero where descent has converged, not zero elsewhere."""

import importlib

import numpy as np
import pytest

from collapsemeter.dufm import (
    DUFM,
    Variables,
    canonical,
    class_columns,
    forward,
    sample_columns,
    stationarity,
    stationarity_identities,
)
from collapsemeter.dufm.descent import lbfgs, newton_polish
from collapsemeter.dufm.seeds import equal_neurons, equal_norms, gaussian_start, random_start

SMOOTH = [
    DUFM(3, 1, 3, 4, feature_decay=0.01, weight_decay=[0.01, 0.02, 0.005], activation="linear"),
    DUFM(3, [4, 2, 1], 2, 4, feature_decay=0.01, weight_decay=0.02, activation="linear"),
    DUFM(3, 2, 2, 4, feature_decay=0.01, weight_decay=0.01, loss="ce", activation="linear"),
    DUFM(3, 2, 1, 4, feature_decay=0.01, weight_decay=0.01, bias=True, bias_decay=0.4),
    DUFM(3, [3, 2, 1], 1, 4, feature_decay=0.01, weight_decay=0.01, loss="ce", bias=True),
]


@pytest.mark.parametrize("problem", SMOOTH, ids=range(len(SMOOTH)))
def test_identities_hold_where_descent_ends(problem):
    start = random_start(problem, np.random.default_rng(0))
    point = newton_polish(problem, lbfgs(problem, start, 2000)[1])
    actual = stationarity_identities(problem, point, class_columns(problem))
    # Each identity is the gradient times variables of size about one.
    assert actual.worst < 1e-9
    assert actual.power > 1e-3
    assert stationarity(problem, point).plain < 1e-9


def test_identities_fail_elsewhere():
    problem = SMOOTH[0]
    point = gaussian_start(problem, np.random.default_rng(0))
    actual = stationarity_identities(problem, point, sample_columns(problem))
    for residual in (actual.norm_spread, actual.neuron_balance, actual.first_layer, actual.loss):
        assert residual > 1e-3


def test_power_is_the_inner_product_of_output_and_error():
    problem = DUFM(3, [1, 2, 3], 1, 4, feature_decay=0.1, weight_decay=0.1)
    point = gaussian_start(problem, np.random.default_rng(1))
    outputs = point.weights[0] @ point.features
    targets = np.eye(3)[:, np.repeat(np.arange(3), [1, 2, 3])]
    expected = np.sum(outputs * (targets - outputs)) / 6
    actual = stationarity_identities(problem, point, sample_columns(problem))
    np.testing.assert_allclose(actual.power, expected, rtol=1e-13)


@pytest.mark.parametrize("rescale", [equal_norms, equal_neurons])
def test_rescaling_keeps_the_outputs_and_lowers_the_penalty(rescale):
    problem = DUFM(3, 1, 3, 5, feature_decay=0.1, weight_decay=0.1)
    start = gaussian_start(problem, np.random.default_rng(2))
    skewed = Variables(3 * start.features, start.weights)

    def norms(point):
        return sum(np.sum(a**2) for a in (point.features, *point.weights))

    moved = rescale(skewed)
    np.testing.assert_allclose(
        forward(problem, moved)[1][-1], forward(problem, skewed)[1][-1], rtol=1e-12
    )
    assert norms(moved) < norms(skewed)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_collapse_is_stationary_with_every_corner_counted(depth):
    problem = canonical(DUFM(4, 5, depth, 6, feature_decay=0.002, weight_decay=0.002))
    actual = stationarity(problem, problem.references()[-2].variables)
    assert actual.plain < 1e-12
    assert actual.generalised <= actual.plain
    assert actual.corners > 0


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_one_free_slope_against_a_grid(depth, seed):
    rng = np.random.default_rng(seed)
    problem = DUFM(3, [1, 2, 1], depth, 9, feature_decay=0.1, weight_decay=0.1, bias=True)
    point = random_start(problem, rng)
    layer = int(rng.integers(2, depth + 1))
    # Put neuron 1 of one layer on its corner for class 2, exactly.
    pre, post = forward(problem, point)
    inputs, row = post[layer - 2][:, 2], point.weights[layer - 2][1]
    row -= inputs * (row @ inputs) / (inputs @ inputs)
    actual = stationarity(problem, point, corner=1e-12)
    pre, post = forward(problem, point)
    assert abs(pre[layer - 1][1, 2]) < 1e-14
    assert actual.corners == 1

    def norm(slope):
        masks = [np.ones_like(pre[0])] + [(x > 0).astype(float) for x in pre[1:-1]]
        masks[layer - 1][1, 2] = slope
        targets, shares = np.eye(3), np.array([0.25, 0.5, 0.25])
        delta = (post[-1] - targets) * shares
        squares = np.sum(delta.sum(axis=1) ** 2)
        for index in range(depth - 1, -1, -1):
            squares += np.sum((delta @ post[index].T + 0.1 * point.weights[index]) ** 2)
            delta = (point.weights[index].T @ delta) * masks[index]
        decays = 0.1 * np.array([1, 2, 1])
        return np.sqrt(squares + np.sum((delta + decays * point.features) ** 2))

    best = min(norm(slope) for slope in np.linspace(0, 1, 1001))
    # The norm is a root of a quadratic in the slope: a grid of 1e-3 misses less than 1e-6.
    np.testing.assert_allclose(actual.generalised, best, atol=1e-5)
    assert actual.generalised <= best + 1e-12
    assert actual.plain >= actual.generalised


def test_large_systems_keep_the_neurons_separate(monkeypatch):
    module = importlib.import_module("collapsemeter.dufm.certificates")
    problem = DUFM(6, 1, 4, 10, feature_decay=0.003, weight_decay=0.003)
    point = problem.optimum().variables
    together = stationarity(problem, point).generalised
    monkeypatch.setattr(module, "LARGEST_SYSTEM", 0)
    apart = stationarity(problem, point)
    assert together <= apart.generalised <= apart.plain


def test_a_random_point_is_not_stationary_in_any_sense():
    problem = DUFM(3, 1, 3, 7, feature_decay=0.01, weight_decay=0.01)
    actual = stationarity(problem, random_start(problem, np.random.default_rng(0)))
    assert actual.generalised > 1e-2


def test_wrong_shapes_are_refused():
    problem = DUFM(3, 2, 1, 7, feature_decay=0.01, weight_decay=0.01)
    with pytest.raises(ValueError, match="features and weights have shapes"):
        stationarity(problem, gaussian_start(problem, np.random.default_rng(0)))
