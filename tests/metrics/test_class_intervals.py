"""Intervals of single classes: the jackknife written out, and how often they cover on several kinds of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import collapsemeter as cm
from collapsemeter.metrics.class_intervals import class_intervals
from collapsemeter.metrics.geometry import ClassGeometry
from collapsemeter.metrics.steps import steps_of
from collapsemeter.stats.groups import Groups

G = 16


def drawn(kind: str, rng, n: int, d: int) -> np.ndarray:
    rows = rng.standard_normal((n, d))
    if kind == "heavy tails":
        rows /= np.sqrt(rng.chisquare(4, (n, d)) / 2)
    if kind == "row scales":
        rows *= np.sqrt(rng.gamma(1, 1, (n, 1)))
    if kind == "anisotropic":
        spread = np.arange(1, d + 1) ** -0.5
        rows *= spread * np.sqrt(d) / np.linalg.norm(spread)
    return rows


def ends_of(features, labels, classes):
    """Intervals from groups that are dealt in turn."""
    means = np.stack([features[labels == c].mean(axis=0) for c in range(classes)])
    counts, squares = np.zeros((classes, G), int), np.zeros((classes, G))
    sums = np.zeros((classes, G, features.shape[1]))
    groups = np.arange(len(labels)) % G
    away = features - means[labels]
    np.add.at(counts, (labels, groups), 1)
    np.add.at(sums, (labels, groups), away)
    np.add.at(squares, (labels, groups), (away**2).sum(axis=1))
    moments = cm.ClassMoments(
        counts=counts.sum(axis=1),
        means=means,
        scatter=None,
        traces=squares.sum(axis=1),
        groups=Groups(counts, sums, squares),
    )
    steps = steps_of(ClassGeometry(moments))
    return class_intervals(steps, means - means.mean(axis=0))


def test_the_steps_written_out():
    rng = np.random.default_rng(0)
    sizes = np.array((20, 7, 40))
    labels = np.repeat(np.arange(3), sizes)
    features = 2 * rng.standard_normal((3, 5))[labels] + rng.standard_normal((len(labels), 5))
    ends = ends_of(features, labels, 3)
    groups = np.arange(len(labels)) % G
    rows = [features[labels == c] for c in range(3)]
    means = np.stack([part.mean(axis=0) for part in rows])
    variances = np.array([part.var(axis=0, ddof=1).sum() for part in rows])

    def squared(means, noise):
        norms = ((means - means.mean(axis=0)) ** 2).sum(axis=1)
        return norms - (1 - 2 / 3) * noise - noise.sum() / 9

    start = squared(means, variances / sizes)
    spread, moved, free = np.zeros((3, G)), np.zeros((3, G)), np.zeros(3)
    for g in range(G):
        away, noise = np.zeros_like(means), variances / sizes
        for c in range(3):
            left = features[(labels == c) & (groups != g)]
            out = sizes[c] - len(left)
            if not out:
                continue
            free[c] += 1
            away[c] = (left.mean(axis=0) - means[c]) * math.sqrt(len(left) / sizes[c])
            scale = math.sqrt((len(left) - 1) / sizes[c])
            spread[c, g] = (left.var(axis=0, ddof=1).sum() - variances[c]) * scale
            noise[c] = (variances[c] + spread[c, g]) * (1 + out / sizes[c]) / sizes[c]
        # Centred steps to first order, and the squares of uncentred ones.
        first = squared(means + 1e-6 * away, variances / sizes)
        second = (away**2).sum(axis=1) - (noise - variances / sizes)
        moved[:, g] = (first - start) / 1e-6 + second * (1 - 2 / 3) + second.sum() / 9
    free -= 1

    def error(steps, used):
        return np.array(
            [((s[u] - s[u].mean()) ** 2).sum() for s, u in zip(steps, used, strict=True)]
        )

    errors = error(spread / variances[:, None], spread != 0) * (sizes - 1) / (sizes - 2)
    shared = (errors * sizes * free).sum() / free.sum() / sizes
    half = stats.t.ppf(0.975, free) * np.sqrt((errors + shared) / 2)
    np.testing.assert_allclose(ends["variance_low"], variances * np.exp(-half), rtol=1e-4)
    np.testing.assert_allclose(ends["variance_high"], variances * np.exp(half), rtol=1e-4)
    errors = error(moved / start[:, None], np.ones((3, G), bool)) * sizes / (sizes - 1)
    half = stats.t.ppf(0.975, 15) * np.sqrt(errors)
    np.testing.assert_allclose(ends["mean_norm_low"], np.sqrt(start) * np.exp(-half / 2), rtol=1e-4)
    np.testing.assert_allclose(ends["mean_norm_high"], np.sqrt(start) * np.exp(half / 2), rtol=1e-4)


@pytest.mark.parametrize("kind", ["Gaussian", "heavy tails", "row scales", "anisotropic"])
@pytest.mark.parametrize("sizes", [(4,) * 6, (8,) * 6, (16,) * 6, (64,) * 6, (4, 6, 10, 30, 100)])
def test_they_cover(kind, sizes):
    rng = np.random.default_rng(len(sizes) + sizes[0])
    classes, d = len(sizes), 32
    truth = rng.standard_normal((classes, d))
    norms = np.linalg.norm(truth - truth.mean(axis=0), axis=1)
    labels = np.repeat(np.arange(classes), sizes)
    variance, norm = [], []
    for _ in range(120):
        features = truth[labels] + drawn(kind, rng, len(labels), d)
        ends = ends_of(features, labels, classes)
        variance.append((ends["variance_low"] <= d) & (d <= ends["variance_high"]))
        norm.append((ends["mean_norm_low"] <= norms) & (norms <= ends["mean_norm_high"]))
    # Of some 700 intervals: 0.92 less two standard errors. Heavy tails hide in samples of a few dozen rows.
    assert np.mean(variance) >= 0.90
    assert np.mean(norm) >= 0.92


def test_few_rows_and_no_distance_have_no_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (3, 40, 40))
    features = 0.01 * np.eye(3, 16)[labels] + rng.standard_normal((len(labels), 16))
    ends = ends_of(features, labels, 3)
    assert np.isnan([end[0] for end in ends.values()]).all()
    assert np.isfinite(ends["variance_low"][1:]).all()
    assert np.isnan(ends["mean_norm_low"]).any()


def test_exact_collapse_has_a_variance_of_zero_and_no_interval():
    labels = np.repeat(np.arange(3), 8)
    ends = ends_of(np.eye(3, 4)[labels], labels, 3)
    assert np.isnan(ends["variance_low"]).all()
    np.testing.assert_allclose(ends["mean_norm_low"], np.sqrt(2 / 3), rtol=1e-12)
    np.testing.assert_allclose(ends["mean_norm_high"], np.sqrt(2 / 3), rtol=1e-12)


def test_a_report_has_them_of_its_own_groups():
    rng = np.random.default_rng(0)
    labels = np.repeat((0, 1, 3), (40, 5, 2))
    features = 1e3 + 3 * rng.standard_normal((4, 6))[labels] + rng.standard_normal((len(labels), 6))
    moments = cm.ClassMoments.from_batch(features, labels, 4)
    columns = cm.measure(moments).per_class
    means = moments.means[[0, 1, 3]]
    ends = class_intervals(steps_of(ClassGeometry(moments)), means - means.mean(axis=0))
    for name, end in ends.items():
        np.testing.assert_allclose(columns[name][[0, 1, 3]], end, rtol=1e-9)
        np.testing.assert_array_equal(np.isnan(columns[name]), [False, False, True, True])
    for name in ("variance", "mean_norm"):
        assert (columns[f"{name}_low"][:2] < columns[f"{name}_high"][:2]).all()
    bare = cm.measure(cm.ClassMoments.from_batch(features, labels, 4, groups=0)).per_class
    assert "variance_low" not in bare
