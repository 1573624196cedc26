"""The network's loss and gradient, against loops and finite differences."""

import re

import numpy as np
import pytest

from collapsemeter.dufm import (
    DUFM,
    Variables,
    class_loss_and_gradient,
    forward,
    loss_and_gradient,
    repeat_samples,
)
from collapsemeter.dufm.descent import flat_objective, flatten, unflatten
from collapsemeter.dufm.seeds import gaussian_start, random_start

PROBLEMS = [
    DUFM(2, 3, 1, 4, feature_decay=0.1, weight_decay=0.2),
    DUFM(3, [1, 2, 4], 3, [4, 6, 5], feature_decay=0.1, weight_decay=[0.2, 0.3, 0.05]),
    DUFM(3, [2, 2, 1], 2, 5, feature_decay=0.1, weight_decay=0.1, loss="ce"),
    DUFM(3, 2, 4, 5, feature_decay=0.1, weight_decay=0.1, bias=True, bias_decay=0.3),
    DUFM(4, 2, 3, 5, feature_decay=0.1, weight_decay=0.1, loss="ce", bias=True),
    DUFM(3, 2, 3, 5, feature_decay=0.1, weight_decay=0.1, activation="linear"),
]
STEP = 1e-6
# Central differences: truncation STEP^2 and rounding 1e-16 / STEP, times modest constants.
DIFFERENCE_ERROR = 1e-8


def point_of(problem, seed=0):
    rng = np.random.default_rng(seed)
    point = gaussian_start(problem, rng)
    bias = None if point.bias is None else rng.standard_normal(problem.num_classes)
    return Variables(point.features, point.weights, bias)


def slow_loss(problem, point):
    """The objective as it is written, sample by sample."""
    labels = [k for k, n in enumerate(problem.counts) for _ in range(n)]
    total = 0.0
    for i, label in enumerate(labels):
        act = point.features[:, i]
        for number, weight in enumerate(point.weights, start=1):
            act = weight @ act
            if number < problem.depth and problem.activation == "relu":
                act = np.array([max(x, 0.0) for x in act])
        if point.bias is not None:
            act = act + point.bias
        if problem.loss == "mse":
            total += 0.5 * sum((z - (k == label)) ** 2 for k, z in enumerate(act))
        else:
            total -= np.log(np.exp(act[label]) / np.sum(np.exp(act)))
    loss = total / len(labels) + 0.5 * problem.feature_decay * np.sum(point.features**2)
    for decay, weight in zip(problem.decays, point.weights, strict=True):
        loss += 0.5 * decay * np.sum(weight**2)
    if point.bias is not None:
        loss += 0.5 * problem.bias_decay * np.sum(point.bias**2)
    return loss


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_loss_is_the_objective_as_written(problem):
    point = point_of(problem)
    np.testing.assert_allclose(
        loss_and_gradient(problem, point)[0], slow_loss(problem, point), rtol=1e-13
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_gradient_against_central_differences(problem):
    point = point_of(problem)
    gradient = loss_and_gradient(problem, point)[1]
    arrays = [point.features, *point.weights, *([] if point.bias is None else [point.bias])]
    slopes = [gradient.features, *gradient.weights]
    slopes += [] if gradient.bias is None else [gradient.bias]
    for array, slope in zip(arrays, slopes, strict=True):
        for index in np.ndindex(array.shape):
            remaining = array[index]
            array[index] = remaining + STEP
            up = loss_and_gradient(problem, point)[0]
            array[index] = remaining - STEP
            down = loss_and_gradient(problem, point)[0]
            array[index] = remaining
            assert abs((up - down) / (2 * STEP) - slope[index]) < DIFFERENCE_ERROR


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_the_flat_objective_is_the_class_level_one(problem):
    point = random_start(problem, np.random.default_rng(1))
    value, slope = flat_objective(problem, point)(flatten(point))
    loss, gradient = class_loss_and_gradient(problem, point)
    np.testing.assert_allclose(value, loss, rtol=1e-14)
    np.testing.assert_allclose(slope, flatten(gradient), atol=1e-14)
    again = unflatten(point, flatten(point))
    np.testing.assert_array_equal(again.features, point.features)
    np.testing.assert_array_equal(again.weights[-1], point.weights[-1])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_smoothed_objective_has_its_own_gradient(smoothing):
    problem = PROBLEMS[1]
    point = random_start(problem, np.random.default_rng(2))
    function, start = flat_objective(problem, point, 0.3, smoothing), flatten(point)
    slope = function(start)[1]
    for index in range(start.size):
        shift = np.zeros(start.size)
        shift[index] = STEP
        difference = (function(start + shift)[0] - function(start - shift)[0]) / (2 * STEP)
        assert abs(difference - slope[index]) < DIFFERENCE_ERROR


def test_smoothing_vanishes_with_its_width():
    problem = PROBLEMS[1]
    point = random_start(problem, np.random.default_rng(2))
    sharp, far, near = (
        flat_objective(problem, point, smoothing=w)(flatten(point))[0] for w in (0.0, 1e-2, 1e-4)
    )
    assert abs(near - sharp) < abs(far - sharp) / 20


@pytest.mark.parametrize("problem", PROBLEMS, ids=range(len(PROBLEMS)))
def test_the_class_level_gradient_sums_over_samples(problem):
    point = random_start(problem, np.random.default_rng(3))
    loss, gradient = class_loss_and_gradient(problem, point)
    full_loss, full = loss_and_gradient(problem, repeat_samples(problem, point))
    np.testing.assert_allclose(loss, full_loss, rtol=1e-13)
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    for k in range(problem.num_classes):
        summed = full.features[:, labels == k].sum(axis=1)
        np.testing.assert_allclose(gradient.features[:, k], summed, atol=1e-14)
    for first, second in zip(gradient.weights, full.weights, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-13)


def test_rotating_the_features_changes_nothing():
    problem = PROBLEMS[1]
    point = point_of(problem)
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((4, 4)))[0]
    turned = Variables(turn @ point.features, (point.weights[0] @ turn.T, *point.weights[1:]))
    np.testing.assert_allclose(
        loss_and_gradient(problem, turned)[0], loss_and_gradient(problem, point)[0], rtol=1e-13
    )


def test_the_relu_acts_on_hidden_layers_only():
    problem = DUFM(2, 1, 2, 2, feature_decay=0.1, weight_decay=0.1)
    point = Variables(-np.eye(2), (np.eye(2), -np.eye(2)))
    pre, post = forward(problem, point)
    np.testing.assert_array_equal(post[0], -np.eye(2))
    np.testing.assert_array_equal(pre[1], -np.eye(2))
    np.testing.assert_array_equal(post[1], np.zeros((2, 2)))
    np.testing.assert_array_equal(post[2], np.zeros((2, 2)))


def test_cross_entropy_survives_huge_outputs():
    problem = DUFM(2, 1, 1, 2, feature_decay=1e-9, weight_decay=1e-9, loss="ce")
    point = Variables(1e3 * np.eye(2), (1e3 * np.eye(2),))
    loss, gradient = loss_and_gradient(problem, point)
    np.testing.assert_allclose(loss, 0.5e-9 * 4e6, rtol=1e-12)
    assert np.all(np.isfinite(gradient.features))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (Variables(np.zeros((4, 5)), (np.zeros((2, 4)),)), "have shapes [(4, 5), (2, 4)], the"),
        (Variables(np.zeros((4, 6)), (np.zeros((4, 2)),)), "problem needs [(4, 6), (2, 4)]: pass"),
        (Variables(np.zeros((4, 6)), ()), "have shapes [(4, 6)]"),
        (
            Variables(np.zeros((4, 6)), (np.zeros((2, 4)),), np.zeros(2)),
            "bias has shape (2,), the problem needs no bias: pass that.",
        ),
    ],
)
def test_wrong_shapes_are_repeated(point, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_and_gradient(PROBLEMS[0], point)


def test_a_missing_or_wrong_bias_is_named():
    problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.1, bias=True)
    for bias, words in ((None, "bias has shape None"), (np.zeros(3), "bias has shape (3,)")):
        with pytest.raises(ValueError, match=re.escape(words) + r".*needs shape \(2,\)"):
            class_loss_and_gradient(problem, Variables(np.eye(2), (np.eye(2),), bias))
