"""Stationarity against gradients written out here, corner by corner."""

import importlib

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from collapsemeter.dufm import DUFM, Variables, class_loss_and_gradient, forward, stationarity
from collapsemeter.dufm.seeds import random_start

module = importlib.import_module("collapsemeter.dufm.certificates")

COUNTS = [1, 3, 2]
CASES = [(2, 2), (3, 2), (3, 3)]
"""Depth, and the layer with corners."""


def skewed(depth, second=0.23, **more):
    """Every decay another one, so that none can stand for a second."""
    return DUFM(
        3, COUNTS, depth, 9, feature_decay=0.05, weight_decay=[0.11, second, 0.31][:depth],
        bias=True, bias_decay=0.4, **more,
    )  # fmt: skip


def at_corners(problem, layer, seed, places=((1, 0), (1, 2), (4, 1), (6, 0), (6, 1))):
    """A random point whose neurons of a layer are on, just above and just below their corners."""
    rng = np.random.default_rng(seed)
    start = random_start(problem, rng)
    point = Variables(start.features, start.weights, rng.standard_normal(3))
    inputs = forward(problem, point)[1][layer - 2]
    for number, (neuron, column) in enumerate(places):
        row, mine = point.weights[layer - 2][neuron], [c for n, c in places if n == neuron]
        requested = row @ inputs[:, mine]
        requested[mine.index(column)] = (0.0, 1e-7, -1e-7)[number % 3]
        row += np.linalg.pinv(inputs[:, mine].T) @ (requested - row @ inputs[:, mine])
    return point


def residuals(problem, point, layer, places, slopes):
    """Derivatives in the bias, every weight from the last to the first, and the features."""
    pre, post = forward(problem, point)
    masks = [(x > 0).astype(float) for x in pre]
    masks[0][:] = 1.0
    for (neuron, column), slope in zip(places, slopes, strict=True):
        masks[layer - 1][neuron, column] = slope
    shares = np.array(COUNTS) / 6
    if problem.loss == "mse":
        delta = (post[-1] - np.eye(3)) * shares
    else:
        chances = np.exp(post[-1]) / np.exp(post[-1]).sum(axis=0)
        delta = (chances - np.eye(3)) * shares
    parts = [delta.sum(axis=1) + problem.bias_decay * point.bias]
    for index in range(problem.depth - 1, -1, -1):
        parts.append(delta @ post[index].T + problem.decays[index] * point.weights[index])
        delta = (point.weights[index].T @ delta) * masks[index]
    return [*parts, delta + problem.feature_decay * np.array(COUNTS) * point.features]


def least(function, count):
    """The least norm of a function affine in slopes between 0 and 1, and where it is."""
    constant = function(np.zeros(count))
    matrix = np.array([function(unit) - constant for unit in np.eye(count)]).T
    slopes = lsq_linear(matrix, -constant, bounds=(0, 1), tol=1e-14).x
    return float(np.linalg.norm(constant + matrix @ slopes)), slopes


def flat(parts):
    return np.concatenate([part.ravel() for part in parts])


PLACES = ((1, 0), (1, 2), (4, 1), (6, 0), (6, 1))


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_plain_norm_is_that_of_the_gradient(loss, activation, depth):
    problem = skewed(depth, loss=loss, activation=activation)
    start = random_start(problem, np.random.default_rng(depth))
    point = Variables(start.features, start.weights, np.array([0.3, -0.2, 0.5]))
    point.weights[0][2] = 0.0  # at zero exactly, where the slope of the ReLU is zero
    gradient = class_loss_and_gradient(problem, point)[1]
    expected = np.linalg.norm(flat([gradient.features, *gradient.weights, gradient.bias]))
    actual = stationarity(problem, point)
    assert actual.plain == pytest.approx(expected, rel=1e-12)
    if not problem.rectified:
        assert (actual.generalised, actual.corners) == (actual.plain, 0)


@pytest.mark.parametrize(("depth", "layer"), CASES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_slopes_of_one_layer_are_the_best_there_are(depth, layer, seed, loss):
    problem = skewed(depth, loss=loss)
    point = at_corners(problem, layer, seed)
    actual = stationarity(problem, point, corner=1e-5)
    assert actual.corners == len(PLACES)
    best, slopes = least(
        lambda slopes: flat(residuals(problem, point, layer, PLACES, slopes)), len(PLACES)
    )
    assert actual.generalised == pytest.approx(best, rel=1e-9)
    assert actual.generalised < actual.plain
    # Some slope is at a bound and some inside: neither the bounds nor the corners are for show.
    assert np.any((slopes > 1e-6) & (slopes < 1 - 1e-6)) or np.any(slopes < 1e-6)


@pytest.mark.parametrize(("depth", "layer"), CASES)
@pytest.mark.parametrize("seed", [4, 5, 8, 9])  # slopes inside their bounds
def test_apart_every_neuron_minimises_the_gradient_of_its_own_weights(
    depth, layer, seed, monkeypatch
):
    monkeypatch.setattr(module, "LARGEST_SYSTEM", 0)
    problem = skewed(depth, second=0.93)
    point = at_corners(problem, layer, seed)
    slopes = np.zeros(len(PLACES))
    for neuron in {neuron for neuron, _ in PLACES}:
        mine = [number for number, place in enumerate(PLACES) if place[0] == neuron]

        def row(values, mine=mine, neuron=neuron):
            given = np.zeros(len(PLACES))
            given[mine] = values
            parts = residuals(problem, point, layer, PLACES, given)
            return parts[1 + problem.depth - (layer - 1)][neuron]

        slopes[mine] = least(row, len(mine))[1]
    expected = np.linalg.norm(flat(residuals(problem, point, layer, PLACES, slopes)))
    actual = stationarity(problem, point, corner=1e-5)
    assert actual.generalised == pytest.approx(min(expected, actual.plain), rel=1e-7)


def test_a_pre_activation_is_on_a_corner_up_to_a_thousandth_of_the_largest():
    problem = DUFM(3, 1, 2, [3, 2], feature_decay=0.1, weight_decay=0.1)
    rows = np.array([[1000.0, 1.0, -1.0], [1.002, -1.002, -500.0]])
    point = Variables(np.eye(3), (rows, np.ones((3, 2))))
    assert stationarity(problem, point).corners == 2
    assert stationarity(problem, point, corner=1.003e-3).corners == 4
    negative = Variables(np.eye(3), (-rows, np.ones((3, 2))))
    assert stationarity(problem, negative).corners == 2
    # The layer after decides for itself: its largest is another one.
    deeper = DUFM(3, 1, 3, [3, 2, 2], feature_decay=0.1, weight_decay=0.1)
    point = Variables(np.eye(3), (rows, np.array([[1e-3, 0.0], [0.0, 1.0]]), np.ones((3, 2))))
    assert stationarity(deeper, point).corners == 2 + 4


def test_a_system_of_exactly_the_largest_size_is_solved_together(monkeypatch):
    problem = skewed(2)
    point = at_corners(problem, 2, 0)
    point.weights[0][8] = point.weights[1][:, 8] = 0.0  # no part of the system: nothing reads it
    together = stationarity(problem, point, corner=1e-5).generalised
    size = len(PLACES) * (9 * 9 + 9 * 3)
    actual = []
    for largest in (size, size - 1):
        monkeypatch.setattr(module, "LARGEST_SYSTEM", largest)
        actual.append(stationarity(problem, point, corner=1e-5).generalised)
    assert actual[0] == together
    assert actual[1] > together * (1 + 1e-6)


def test_later_rounds_improve_and_the_last_one_gains_little(monkeypatch):
    problem = skewed(3)
    both = at_corners(problem, 3, 1)
    inputs = both.features
    row = both.weights[0][5]
    row -= inputs[:, 1] * (row @ inputs[:, 1]) / (inputs[:, 1] @ inputs[:, 1])
    after = at_corners_of(problem, both, 3)
    rounds = []
    for sweeps in (0, 1, 2, 3, 30):
        monkeypatch.setattr(module, "SWEEPS", sweeps)
        rounds.append(stationarity(problem, after, corner=1e-5).generalised)
    monkeypatch.undo()
    assert stationarity(problem, after, corner=1e-5).generalised == rounds[3]
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[0] > rounds[1] * (1 + 1e-6)
    assert rounds[1] > rounds[3]
    assert rounds[3] <= rounds[4] * (1 + 1e-3)


def at_corners_of(problem, point, layer):
    """Put the same neurons back on their corners after a layer below was changed."""
    inputs = forward(problem, point)[1][layer - 2]
    for neuron in {neuron for neuron, _ in PLACES}:
        mine = [column for n, column in PLACES if n == neuron]
        row = point.weights[layer - 2][neuron]
        row -= np.linalg.pinv(inputs[:, mine].T) @ (row @ inputs[:, mine])
    return point


def test_without_corners_both_norms_agree():
    problem = skewed(3)
    point = random_start(problem, np.random.default_rng(3))
    actual = stationarity(problem, point, corner=1e-12)
    assert actual.corners == 0
    assert actual.generalised == actual.plain


def test_a_neuron_that_nothing_reads_is_no_obstacle():
    problem = skewed(2)
    point = at_corners(problem, 2, 0)
    for weight in point.weights[1:]:
        weight[:, [1, 4, 6]] = 0.0
    actual = stationarity(problem, point, corner=1e-5)
    assert actual.corners == len(PLACES)
    assert actual.generalised == actual.plain
