"""Losses of the literature's structures, and held-out ones by independent means."""

import math

import numpy as np
import pytest

from collapsemeter.dufm import (
    DUFM,
    dnc,
    gof,
    linear,
    linear_ce_dnc,
    linear_ce_pairs,
    linear_ce_polygon,
    loss_and_gradient,
    minority_threshold,
    pairs,
    srg,
    ufm_ce,
    ufm_mse,
)

DIGITS = 1e-9


def model(classes, n, depth, decay, **more):
    return DUFM(classes, n, depth, feature_decay=decay, weight_decay=decay, **more)


def descend(function, low, high, count=4001, rounds=12):
    """The minimum on an interval by repeated refinement of a grid."""
    for _ in range(rounds):
        grid = np.linspace(low, high, count)
        values = np.array([function(x) for x in grid])
        best = int(values.argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, count - 1)]
        count = 101
    return float(values.min())


@pytest.mark.parametrize(
    ("classes", "depth", "n", "decay", "c", "t", "loss"),
    [
        (2, 3, 10, 0.01, 0.0177827941, 0.9637721289, 0.070487054295),
        (2, 4, 50, 5e-4, 0.0010933621, 0.9978103980, 0.005464416344),
        (3, 2, 5, 0.02, 0.0341995189, 0.8934761306, 0.148438469384),
        (10, 4, 50, 0.004, 0.0087468966, 0.9072718648, 0.214623323978),
        (10, 4, 1, 0.002, 0.002, 0.9797530306, 0.049797543943),
    ],
)
def test_collapse(classes, depth, n, decay, c, t, loss):
    problem = model(classes, n, depth, decay)
    best = dnc(problem)
    np.testing.assert_allclose(problem.canonical_decay, c, atol=1e-10)
    np.testing.assert_allclose(best.parameters["t"], t, atol=1e-10)
    np.testing.assert_allclose(best.loss, loss, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "decay", "size", "loss"),
    [
        (50, 0.004, 2, 0.1938316691),
        (50, 0.004, 3, 0.1759418309),
        (1, 0.002, 2, 0.0449034748),
        (1, 0.002, 3, 0.0407056320),
    ],
)
def test_the_strongly_regular_graph_solution(n, decay, size, loss):
    np.testing.assert_allclose(srg(model(10, n, 4, decay), size).loss, loss, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_collapse_at_held_out_settings(seed):
    rng = np.random.default_rng(seed)
    classes, depth, n = (int(rng.integers(*x)) for x in ((2, 12), (1, 7), (1, 60)))
    decays = rng.uniform(0.5, 2, depth + 1) * 1e-3
    problem = DUFM(classes, n, depth, feature_decay=decays[0], weight_decay=list(decays[1:]))
    # All factors are multiples of orthogonal frames; product of scales t, cost by the means.
    product = n * float(np.prod(decays))

    def loss(t):
        return 0.5 * (1 - t) ** 2 + (depth + 1) / 2 * classes * (product * t * t) ** (
            1 / (depth + 1)
        )

    np.testing.assert_allclose(dnc(problem).loss, descend(loss, 0.05, 1.0), atol=DIGITS)


def test_one_layer_cross_entropy():
    problem = DUFM(10, 2, 1, feature_decay=5e-4, weight_decay=5e-3, loss="ce")
    best = ufm_ce(problem)
    np.testing.assert_allclose(best.parameters["margin"], 6.0827064525, atol=1e-10)
    np.testing.assert_allclose(best.loss, 0.1427419763, atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_one_layer_cross_entropy_at_held_out_settings(seed):
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(2, 15)), int(rng.integers(1, 30))
    wide, deep = rng.uniform(1e-4, 1e-3, 2)
    problem = DUFM(classes, n, 1, feature_decay=deep, weight_decay=wide, loss="ce")
    cost = math.sqrt(n * wide * deep) * (classes - 1)
    loss = descend(lambda a: math.log1p((classes - 1) * math.exp(-a)) + cost * a, 0.01, 40.0)
    np.testing.assert_allclose(ufm_ce(problem).loss, loss, atol=DIGITS)


@pytest.mark.parametrize("bias_decay", [None, 0.0, 1e-3, 0.03, 0.2, 5.0])
@pytest.mark.parametrize("g", [0.05, 0.3])
def test_one_layer_squared_loss_with_any_bias(bias_decay, g):
    classes, n = 4, 3
    decay = g / classes / math.sqrt(n)
    bias = {} if bias_decay is None else {"bias": True, "bias_decay": bias_decay}
    problem = model(classes, n, 1, decay, **bias)

    def loss(fit, mean, shift):
        """Outputs fit * P + mean * J / K plus the bias shift / K."""
        target = np.eye(classes) - (fit * (np.eye(classes) - 1 / classes) + mean / classes)
        target -= shift / classes
        nuclear = (classes - 1) * fit + mean
        extra = (bias_decay or 0.0) / 2 * shift**2 / classes
        return np.sum(target**2) / (2 * classes) + g / classes * nuclear + extra

    fit = descend(lambda f: loss(f, 0.0, 0.0), 0.0, 1.0)  # the centred part is separate
    fit = max(0.0, 1 - g) if np.isfinite(fit) else 0.0
    means = np.linspace(0, 1, 2001)
    shifts = np.zeros(1) if bias_decay is None else np.linspace(0, 1, 2001)
    residual = (1 - means[:, None] - shifts[None, :]) ** 2 / (2 * classes)
    rest = residual + g / classes * means[:, None]
    rest = rest + (bias_decay or 0.0) / 2 * shifts[None, :] ** 2 / classes
    centred = loss(fit, 0.0, 0.0) - 1 / (2 * classes)
    # A grid of 5e-4 misses the minimum of a quadratic of curvature below 2 by at most 1e-6.
    actual = ufm_mse(problem).loss
    assert actual <= centred + rest.min() + 1e-14
    np.testing.assert_allclose(actual, centred + rest.min(), atol=1e-6)


def test_general_orthogonal_frame():
    problem = model(4, [8, 4, 2, 1], 2, 0.008)
    best = gof(problem)
    np.testing.assert_allclose(best.loss, 0.0687255921, atol=1e-10)
    fits = [best.parameters[f"t_{k}"] for k in range(4)]
    np.testing.assert_allclose(fits, [0.9696906, 0.9515836, 0.9223400, 0.8745149], atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_general_orthogonal_frame_solves_its_published_equation(seed):
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(2, 6))
    counts = sorted(rng.integers(1, 40, 4).tolist(), reverse=True)
    decays = rng.uniform(0.5, 2, depth + 1) * 2e-3
    problem = DUFM(
        4, counts, depth, feature_decay=decays[0], weight_decay=list(decays[1:]),
        activation="linear",
    )  # fmt: skip
    best, total, power = gof(problem), sum(counts), depth + 1 - 1
    assert best.status == "theorem"
    strength = power * total * (total * float(np.prod(decays))) ** (1 / power)
    for k, count in enumerate(counts):
        t = best.parameters[f"t_{k}"]
        # t = x^M / (1 + x^M) with b / n_k = M x^(M-1) / (x^M + 1)^2.
        x = (t / (1 - t)) ** (1 / power)
        left, right = strength / count, power * x ** (power - 1) / (x**power + 1) ** 2
        np.testing.assert_allclose(left, right, rtol=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_minorities_collapse_at_the_threshold(depth):
    counts = [900, 60, 40]
    problem = model(3, counts, depth, 0.01)
    scale = (40 / minority_threshold(problem)) ** (depth / (depth + 1))
    for factor, learned in ((1 - 1e-6, True), (1 + 1e-6, False)):
        near = model(3, counts, depth, 0.01 * scale * factor)
        assert (gof(near).parameters["t_2"] > 0) is learned
        assert gof(near).parameters["t_1"] > 0


def test_deep_linear_with_a_free_bias_is_a_simplex():
    problem = model(4, 3, 3, 1e-3, activation="linear")
    centred = linear(model(4, 3, 3, 1e-3, activation="linear", bias=True))
    np.testing.assert_allclose(centred.loss, 0.75 * linear(problem).loss, rtol=1e-14)
    gram = centred.gram(2)
    np.testing.assert_allclose(gram / gram[0, 0], (np.eye(4) - 0.25) / 0.75, atol=1e-12)


def test_deep_linear_cross_entropy():
    problem = model(6, 1, 3, 0.003, loss="ce", activation="linear")
    actual = [build(problem) for build in (linear_ce_dnc, linear_ce_pairs, linear_ce_polygon)]
    np.testing.assert_allclose([o.loss for o in actual[:2]], [0.0837794, 0.0708039], atol=5e-8)
    np.testing.assert_allclose([o.parameters["margin"] for o in actual[:2]],
                               [6.75878, 6.69675], atol=5e-6)  # fmt: skip
    # The polygon against a search over its scale, through the network's own loss.
    angles = 2 * np.pi * np.arange(6) / 6

    def loss(b):
        logits = b * (np.cos(angles) - 1)
        return np.log(np.exp(logits).sum()) + 4 * 0.003 * (3 * b) ** 0.5

    np.testing.assert_allclose(actual[2].loss, descend(loss, 1.0, 40.0), atol=DIGITS)


@pytest.mark.parametrize(("classes", "depth"), [(4, 2), (4, 3), (5, 2), (6, 2), (3, 3), (7, 4)])
def test_pairs_beat_collapse_in_linear_networks_where_published(classes, depth):
    # Asymptotically, so at a very weak decay: m 2^(2/(L+1)) < 2m - 1 with even K = 2m.
    problem = model(classes, 1, depth, 1e-12, loss="ce", activation="linear")
    better = linear_ce_pairs(problem).loss < linear_ce_dnc(problem).loss
    half = classes // 2
    rank_cost = half * 2 ** (2 / (depth + 1)) + classes % 2
    assert better is (rank_cost < classes - 1)


@pytest.mark.parametrize(("classes", "depth", "first"), [(8, 4, True), (6, 4, False)])
def test_pairs_in_relu_networks(classes, depth, first):
    problem = model(classes, 1, depth, 1e-9, loss="ce")
    single, two = pairs(problem), dnc(problem)
    assert (single.loss < two.loss) is first
    for best in (single, two):
        assert abs(loss_and_gradient(problem, best.samples())[0] - best.loss) < 1e-12
    expected = (2 * classes**3 * ((classes + 2) / 2) ** (depth - 2)) ** (1 / (depth + 1))
    np.testing.assert_allclose(single.parameters["effective_classes"], expected, rtol=1e-12)
